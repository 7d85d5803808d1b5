"""From figures to conclusions: what holds for any machine."""

import dataclasses
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.probe.plan import TYPICAL_RATES, Measured, Reading, Spread, Work, conclude, wanted_augmenters
from fourstage.probe.words import limit_rows, paragraph, rows, warnings
from fourstage.verdict import WAITING
from fourstage.verdict import Reading as Counters
from fourstage.verdict import wanted_augmenters as wanted_by_verdict
from fourstage.wire.messages import Usage


def same(value: float) -> Spread:
    return Spread(value, value, value)


RATES = st.floats(1.0, 1e7)
SECONDS = st.floats(1e-6, 0.1)


@st.composite
def machines(draw: st.DrawFn) -> Measured:
    """Any figures at all, noise included: cores that are slower or faster together than alone."""
    cores, seconds = draw(st.integers(1, 256)), draw(SECONDS)
    return Measured(
        work=Work(
            batch_size=128,
            crop=224,
            stored_size=256,
            images=draw(st.integers(1, 10_000_000)),
            jpeg_bytes=draw(st.floats(100.0, 1e6)),
            arena_bytes=draw(st.integers(4096, 1 << 32)),
            slots=3,
            threads=4,
            inline=draw(st.booleans()),
        ),
        cores=cores,
        image_seconds=same(seconds),
        image_cpu_seconds=seconds,
        decode_seconds=same(seconds * draw(st.floats(0.1, 1.2))),
        together=same(cores / seconds * draw(st.floats(0.001, 1.5))),
        cold=Reading(same(draw(RATES)), 1e-5, resident=draw(st.floats(0.0, 1.0))),
        warm=Reading(same(draw(RATES)), draw(st.floats(0.0, 1e-3))),
        first_touch=same(1e9),
        copy=same(1e10),
        loopback=same(draw(RATES)),
        available_bytes=draw(st.integers(0, 1 << 40)),
        others=draw(st.floats(0.0, 256.0)),
        machine_cores=256,
    )


EPYC = Measured(
    work=Work(128, 224, 256, 1_281_167, 21_500.0, 57_802_752, 3, 4, inline=False),
    cores=16,
    image_seconds=Spread(410e-6, 400e-6, 430e-6),
    image_cpu_seconds=410e-6,
    decode_seconds=Spread(340e-6, 330e-6, 350e-6),
    together=Spread(31_000.0, 30_000.0, 32_000.0),
    cold=Reading(Spread(9_000.0, 8_000.0, 9_500.0), 30e-6),
    warm=Reading(Spread(60_000.0, 55_000.0, 61_000.0), 15e-6),
    first_touch=same(1.5e9),
    copy=same(10e9),
    loopback=same(8_000.0),
    available_bytes=16 << 30,
    others=0.1,
    machine_cores=16,
)


@given(machines(), RATES, RATES)
def test_a_higher_rate_never_needs_fewer_augmenters(measured: Measured, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert wanted_augmenters(measured, low) <= wanted_augmenters(measured, high)


@given(machines(), RATES)
def test_the_augmenters_wanted_do_and_one_fewer_would_not(measured: Measured, rate: float) -> None:
    wanted = wanted_augmenters(measured, rate)
    assert measured.capacity(wanted) >= rate * (1 - 1e-9)
    assert wanted == 1 or measured.capacity(wanted - 1) < rate * (1 + 1e-9)
    (need,) = conclude(measured, rate).needs
    assert need.cores_at_work <= wanted * (1 + 1e-9)


@given(machines())
def test_more_augmenters_never_make_less(measured: Measured) -> None:
    made = [measured.capacity(count) for count in range(measured.cores + 3)]
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in pairwise(made))


@given(st.integers(1, 64), st.floats(1e-4, 0.01), st.floats(0.001, 1.0))
def test_on_cores_that_do_not_disturb_each_other_it_is_the_verdicts_rule_without_its_allowance(
    cores: int, seconds: float, step: float
) -> None:
    measured = dataclasses.replace(
        EPYC, cores=cores, image_seconds=same(seconds), together=same(cores / seconds), machine_cores=cores
    )
    batch = 128
    counted = Counters(
        {
            "transform": Usage(busy=batch * seconds, batches=1),
            "train": Usage(busy=step, batches=1),
        }
    )
    by_verdict = wanted_by_verdict(Counters(), counted)
    wanted = wanted_augmenters(measured, batch / step)
    assert by_verdict <= wanted + 1e-9
    assert (1.0 - WAITING) * (wanted - 1) <= by_verdict * (1 + 1e-9)


@given(machines(), st.none() | RATES)
def test_the_limit_named_is_the_smallest_that_this_machine_meets(measured: Measured, rate: float | None) -> None:
    plan = conclude(measured, rate)
    assert plan.first.rate == min(limit.rate for limit in plan.limits if limit.counts)
    assert [limit.rate for limit in plan.limits] == sorted(limit.rate for limit in plan.limits)
    for need in plan.needs:
        assert need.carried == {limit.name: need.rate <= limit.rate for limit in plan.limits}
        assert need.enough_cores == (need.augmenters <= measured.cores)
    by_name = {limit.name: limit for limit in plan.limits}
    assert by_name["disk"].counts == (measured.cold_is_cold and not measured.fits_in_memory)
    assert by_name["loopback"].counts == by_name["network"].counts == measured.work.inline


@given(machines(), st.none() | RATES)
def test_everything_is_said_of_any_machine(measured: Measured, rate: float | None) -> None:
    plan = conclude(measured, rate)
    told = paragraph(measured, plan)
    assert "augmenter" in told
    assert "First to give out" in told
    assert "nan" not in told
    assert len(rows(measured)) == 9
    assert {row[2] for row in limit_rows(measured, plan, rate)} <= ({""} if rate is None else {"yes", "no"})
    assert measured.decode_share <= 1.0
    assert bool(warnings(measured)) == (measured.busy or measured.uneven or not measured.cold_is_cold)


def test_sixteen_cores_at_five_thousand_images_a_second() -> None:
    plan = conclude(EPYC, 5_000.0)
    (need,) = plan.needs
    assert (need.augmenters, need.enough_cores) == (3, True)
    assert need.cores_at_work == pytest.approx(2.1, abs=0.1)
    assert plan.first.name == "disk"
    told = paragraph(EPYC, plan)
    assert "One core makes 2,440 images/s of 224x224 (410 µs each, 83% of it decoding)" in told
    assert "16 cores together 31,000" in told
    assert "The disk gives 9,000 images/s cold, 60,000 from the page cache." in told
    assert "To feed 5,000 images/s take 3 augmenters (2.1 cores at work)." in told
    assert "First to give out: the disk at 9,000 images/s; next: cores at 30,100." in told


def test_a_rate_beyond_the_machine_names_all_that_is_too_little() -> None:
    plan = conclude(EPYC, 40_000.0)
    assert not plan.needs[0].enough_cores
    told = paragraph(EPYC, plan)
    assert "more than the 16 cores here" in told
    assert "does not carry that: it takes more of the disk and of cores." in told


def test_a_split_that_fits_in_memory_meets_the_disk_once() -> None:
    measured = dataclasses.replace(EPYC, available_bytes=64 << 30)
    plan = conclude(measured, 20_000.0)
    assert plan.first.name == "cores"
    assert "The first epoch comes from the disk" in paragraph(measured, plan)


def test_without_a_rate_there_are_typical_ones_and_the_most_of_this_machine() -> None:
    plan = conclude(EPYC)
    assert [need.rate for need in plan.needs] == sorted([*TYPICAL_RATES, plan.first.rate])


def test_little_memory_gives_out_first() -> None:
    plan = conclude(dataclasses.replace(EPYC, available_bytes=2 * EPYC.work.arena_bytes), 8_000.0)
    assert plan.first.name == "memory"
    assert plan.first.rate == pytest.approx(EPYC.capacity(2))
    none = conclude(dataclasses.replace(EPYC, available_bytes=0))
    assert none.first.rate == 0.0
    assert math.isfinite(none.needs[0].cores_at_work)


def test_what_makes_figures_doubtful_is_said() -> None:
    assert warnings(EPYC) == []
    (busy,) = warnings(dataclasses.replace(EPYC, others=4.0))
    assert "others used 4.0 of 16 cores" in busy
    (kept,) = warnings(dataclasses.replace(EPYC, cold=dataclasses.replace(EPYC.cold, resident=0.9)))
    assert "kept 90%" in kept
    assert "what the disk gives is not known" in paragraph(
        dataclasses.replace(EPYC, cold=dataclasses.replace(EPYC.cold, resident=0.9)), conclude(EPYC)
    )
