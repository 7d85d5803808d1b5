"""The soak's verdicts: a leak is found however small its steps are, and noise, steps and restarts are no leak."""

from itertools import pairwise

import numpy as np
import pytest
from benchmarks.soak.disturb import KINDS, Act, plan
from benchmarks.soak.draw import apart
from benchmarks.soak.findings import COUNTS, LATENCY, MEMORY, Finding, Window, findings
from benchmarks.soak.judge import LEAST_BLOCKS, Judgement, Limit, Series, in_blocks, judge, likeness
from benchmarks.soak.watch import Sample, Stream, Vitals, mapped
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.signal import lfilter

HOUR, MINUTE = 3600.0, 60.0
JUDGEMENTS = 21
"""As many as a soak makes at one time."""
DESCRIPTORS = Limit(COUNTS[0].harmless, COUNTS[0].visible)
MEGABYTES = Limit(MEMORY[0].harmless, MEMORY[0].visible)
HALF_HOUR = np.arange(5 * MINUTE, 30 * MINUTE)
"""Of readings once a second, less the warm-up."""
seeds = st.integers(0, 2**32 - 1)


def verdict(values: Series, limit: Limit) -> Judgement:
    return judge(*in_blocks(HALF_HOUR, values, MINUTE), limit, judgements=JUDGEMENTS)


def wandering(seed: int, likeness_: float, deviation: float, count: int = len(HALF_HOUR)) -> Series:
    """Noise in which each reading is like the one before (an autoregression of first order)."""
    random = np.random.default_rng(seed)
    noise = random.normal(0.0, deviation * (1.0 - likeness_**2) ** 0.5, count)
    noise[0] = random.normal(0.0, deviation)
    values: Series = lfilter([1.0], [1.0, -likeness_], noise)
    return values


# A leak is found


@given(every=st.floats(60.0, 300.0), offset=st.floats(0.0, 300.0))
@example(every=300.0, offset=0.0)
def test_a_descriptor_that_leaks_every_five_minutes_or_oftener_is_found(every: float, offset: float) -> None:
    values = 37.0 + np.floor((HALF_HOUR + offset) / every)
    assert verdict(values, DESCRIPTORS).word == "rises"


@given(seed=seeds, rate=st.floats(60.0, 6000.0), likeness_=st.floats(0.0, 0.99), deviation=st.floats(0.0, 1.0))
@example(seed=0, rate=60.0, likeness_=0.0, deviation=1.0)
def test_a_megabyte_a_minute_is_found_in_noise_of_a_megabyte(
    seed: int, rate: float, likeness_: float, deviation: float
) -> None:
    values = 166.0 + rate * HALF_HOUR / HOUR + wandering(seed, likeness_, deviation)
    judgement = verdict(values, MEGABYTES)
    assert judgement.word == "rises"
    assert judgement.low <= rate * 1.001
    assert judgement.high >= rate * 0.999


def test_a_leak_that_takes_its_memory_by_the_four_megabytes_is_found() -> None:
    values = 36.0 + 4.0 * np.floor(HALF_HOUR / (4 * MINUTE))
    assert verdict(values, MEGABYTES).word == "rises"


@given(seed=seeds, limit=st.floats(0.01, 100.0), times=st.floats(1.0, 50.0), level=st.floats(0.0, 1e4))
def test_what_rises_faster_than_what_must_be_seen_never_passes(
    seed: int, limit: float, times: float, level: float
) -> None:
    # Whatever the noise: where it hides the leak the question is open.
    noise = wandering(seed, 0.5, limit, LEAST_BLOCKS + seed % 40)
    seconds = MINUTE * np.arange(len(noise), dtype=np.float64)
    values = level + 1.01 * times * limit * seconds / HOUR
    assert judge(seconds, values, Limit(0.1 * limit, limit)).word == "rises"
    assert judge(seconds, values + 0.01 * noise, Limit(0.1 * limit, limit)).word != "flat"


# What is no leak


@given(level=st.floats(1.0, 1e4))
def test_what_never_changes_is_flat(level: float) -> None:
    judgement = verdict(np.full(len(HALF_HOUR), level), DESCRIPTORS)
    assert (judgement.word, judgement.slope, judgement.low, judgement.high) == ("flat", 0.0, 0.0, 0.0)


@pytest.mark.parametrize("likeness_", [0.0, 0.9, 0.99])
def test_noise_about_a_level_is_no_rise_more_often_than_the_risk_says(likeness_: float) -> None:
    # Each is judged as one of 21 with a risk of one in twenty together: one false alarm in 420.
    words = [verdict(166.0 + wandering(seed, likeness_, 0.3), Limit(0.0, 1e9)).word for seed in range(100)]
    assert words.count("rises") <= 1


def test_one_small_step_of_an_allocator_passes_wherever_it_comes() -> None:
    random = np.random.default_rng(0)
    for minute in range(6, 30):
        values = 36.0 + 0.5 * (minute * MINUTE < HALF_HOUR) + random.normal(0.0, 0.02, len(HALF_HOUR))
        assert verdict(values, MEGABYTES).word == "flat", minute


@pytest.mark.parametrize("minute", range(6, 30))
def test_one_more_descriptor_in_half_an_hour_passes(minute: int) -> None:
    values = np.where(minute * MINUTE < HALF_HOUR, 38.0, 37.0)
    assert verdict(values, DESCRIPTORS).word == "flat"


def test_what_falls_is_flat() -> None:
    falling: Series = 100.0 - 60.0 * HALF_HOUR / HOUR
    assert verdict(falling, MEGABYTES).word == "flat"


# What nothing can be said of


@given(blocks=st.integers(0, LEAST_BLOCKS - 1))
def test_too_few_blocks_prove_nothing(blocks: int) -> None:
    assert judge(MINUTE * np.arange(blocks, dtype=np.float64), np.full(blocks, 5.0), DESCRIPTORS).word == "open"


def test_noise_in_which_a_leak_could_hide_proves_nothing() -> None:
    words = {verdict(100.0 + wandering(seed, 0.9, 20.0), MEGABYTES).word for seed in range(20)}
    assert words == {"open"}


@given(seed=seeds, factor=st.floats(0.01, 100.0), shift=st.floats(-1e3, 1e3))
def test_units_and_levels_change_no_verdict(seed: int, factor: float, shift: float) -> None:
    seconds, values = in_blocks(HALF_HOUR, wandering(seed, 0.9, 1.0), MINUTE)
    one = judge(seconds, values, MEGABYTES)
    other = judge(seconds + 100.0, factor * values + shift, Limit(factor * 1.0, factor * 10.0))
    assert other.high == pytest.approx(factor * one.high, rel=1e-3, abs=1e-3 * factor)
    assert other.low == pytest.approx(factor * one.low, rel=1e-3, abs=1e-3 * factor)


def test_blocks_that_are_alike_have_wider_bounds() -> None:
    seconds = MINUTE * np.arange(25, dtype=np.float64)
    alike, not_alike = np.sin(seconds / 180.0), np.sin(seconds / 24.0)
    assert likeness(seconds, alike) > 0.5
    assert likeness(seconds, not_alike) == 0.0


def test_a_block_is_the_median_of_enough_readings() -> None:
    seconds = np.array([0.0, 1.0, 2.0, 60.0, 61.0, 120.0, 121.0, 122.0, 123.0])
    values = np.array([1.0, 2.0, 900.0, 5.0, 5.0, 7.0, np.nan, 9.0, 8.0])
    times, medians = in_blocks(seconds, values, MINUTE)
    assert times.tolist() == [1.0, 122.0]
    assert medians.tolist() == [2.0, 8.0]


# From samples to verdicts


def deaths(minutes: int) -> tuple[float, float]:
    """When the loader dies, in seconds: at a tenth and at a third."""
    return 6.0 * minutes, 20.0 * minutes


def samples_of(minutes: int, *, leak: float = 0.0, slower: float = 0.0) -> tuple[list[Sample], Series]:
    """A made-up run: its loader dies at a tenth and a third; each new one takes less memory than the one before had.

    leak: MB an hour in the trainer; slower: by which share a step takes longer each hour
    """
    random = np.random.default_rng(0)
    samples: list[Sample] = []
    steps: list[float] = []
    done = 0
    for second in range(60 * minutes):
        generation = sum(second >= death for death in deaths(minutes))
        born = max([0.0, *(death for death in deaths(minutes) if second >= death)])
        share = 1.0 + slower * second / HOUR
        new = int(random.poisson(50 / share))
        steps.extend(random.gamma(10.0, 2.0 * share, new).tolist())
        done += new
        # More and more of the time there are more augmenters: what is held then must not count.
        scaled = second % 60 < 10 + 40 * second / (60 * minutes)

        def held(private: float, count: int, extra: int = scaled) -> Vitals:
            return Vitals(private + float(random.normal(0.0, 0.05)) + 40.0 * extra, 60.0, count + 3 * extra, 9, 1.0)

        samples.append(
            Sample(
                float(second),
                {
                    ("run", 1): held(34.0, 10, 0),
                    ("trainer", 2): held(166.0 + leak * second / HOUR, 37),
                    ("loader", 3 + generation): held(30.0 + 8.0 * (1.0 - np.exp((born - second) / 30.0)), 34),
                    ("augmenter-0", 9): held(36.0, 28),
                },
                Stream(steps=done, age_sum=0.3 * share * done, age_count=done),
                settled=not scaled,
            )
        )
    return samples, np.array(steps)


def words(found: list[Finding]) -> dict[tuple[str, str], str]:
    return {(finding.role, finding.measure.name): finding.judgement.word for finding in found}


def test_a_steady_run_is_flat_in_everything_through_scales_and_restarts() -> None:
    found = findings(*samples_of(30), Window.of(30 * MINUTE))
    assert set(words(found).values()) == {"flat"}
    assert len(found) == JUDGEMENTS
    for finding in found:
        limit = finding.measure.limit(finding.judgement.level)
        # Twenty-one chances of a false alarm share one risk.
        assert finding.judgement == judge(finding.seconds, finding.values, limit, judgements=JUDGEMENTS)
        born = deaths(30)[1] if finding.role == "loader" else 0.0
        assert finding.seconds[0] >= born + 5 * MINUTE
    assert {finding.process for finding in found if finding.role == "loader"} == {"loader 5"}
    assert next(finding for finding in found if finding.measure == COUNTS[0]).judgement.level == 37.0


def test_a_leak_in_one_role_is_found_there() -> None:
    found = words(findings(*samples_of(30, leak=60.0), Window.of(30 * MINUTE)))
    assert [key for key, word in found.items() if word != "flat"] == [("trainer", "private"), ("together", "private")]
    assert set(found.values()) == {"flat", "rises"}


def test_steps_that_take_longer_and_longer_are_found() -> None:
    found = words(findings(*samples_of(30, slower=0.6), Window.of(30 * MINUTE)))
    assert {found["stream", measure.name] for measure in LATENCY} == {"rises"}


# What happens to a run


@given(seed=seeds, home=st.integers(2, 4))
def test_disturbances_leave_every_role_a_long_life(seed: int, home: int) -> None:
    seconds, gaps = 30 * MINUTE, (10.0, 30.0)
    acts = plan(seed, seconds, gaps, home)
    assert acts == plan(seed, seconds, gaps, home)
    assert {act.kind for act in acts} == set(KINDS)
    for one, other in pairwise(acts):
        assert gaps[0] <= other.at - (one.at + one.lasts) <= gaps[1]
    assert all(act.at <= seconds / 3 for act in acts if act.kind == "kill loader")
    assert all(0 < act.number < home for act in acts if act.kind == "kill augmenter")
    assert all(act.number != home and 1 <= act.number <= 4 for act in acts if act.kind == "scale")
    assert all(act.lasts > 0.0 for act in acts if act.kind in ("scale", "freeze"))
    assert acts[-1].at + acts[-1].lasts + gaps[0] <= seconds


def test_a_run_that_is_too_short_for_it_is_not_disturbed() -> None:
    assert plan(0, 15.0, (10.0, 30.0), 2) == []
    assert all(isinstance(act, Act) for act in plan(0, 60.0, (2.0, 4.0), 2))


def test_arenas_are_counted_in_their_full_size() -> None:
    maps = (
        "7f0000000000-7f0000003000 rw-s 00000000 00:01 5 /memfd:fourstage (deleted)\n"
        "7f0000010000-7f0000011000 r--p 00000000 08:01 9 /usr/lib/memfd.so\n"
        "7f0000020000-7f0000021000 r--s 00000000 00:01 6 /memfd:fourstage (deleted)\n"
        "7f0000030000-7f0000031000 rw-p 00000000 00:00 0 \n"
    )
    assert mapped(maps) == 4 * 4096


# The picture


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
def test_labels_never_hide_one_another_and_stay_in_order(places: list[float]) -> None:
    moved = apart(np.array(sorted(places)), 0.17)
    assert len(moved) == len(places)
    assert all(np.diff(moved) >= 0.17 - 1e-9)
    assert np.mean(moved) == pytest.approx(np.mean(places), abs=1e-9)
