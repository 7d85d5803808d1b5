"""The sentence that says what a run waits for, and how many augmenters would feed it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.metrics import BOTTLENECKS
from fourstage.verdict import WAITING, Reading, Shares, judge, shares, wanted_augmenters
from fourstage.wire.messages import Usage

NOTHING = Reading()


def used(busy: float, upstream: float, downstream: float, batches: int = 100) -> Usage:
    """Of 10 seconds, by shares."""
    return Usage(batches, 10.0 * busy, 10.0 * upstream, 10.0 * downstream)


IDLE = used(0.1, 0.2, 0.7)


def reading(
    *, load: Usage = IDLE, transform: Usage = IDLE, copy: Usage = IDLE, waits: float, in_: float = 0.0, out: float = 0.0
) -> Reading:
    """After 10 seconds; in_, out: batches on their way on average."""
    train = used(1.0 - waits, waits, 0.0)
    return Reading({"load": load, "transform": transform, "copy": copy, "train": train}, 10.0, 10 * in_, 10 * out)


@pytest.mark.parametrize(
    ("after", "what", "words"),
    [
        (reading(waits=0.0), "train", "train-bound"),
        (
            reading(transform=used(0.97, 0.03, 0.0), waits=0.31),
            "transform",
            "transform-bound: augmenters are 97% busy, the trainer waits 31%",
        ),
        (reading(load=used(0.9, 0.0, 0.1), waits=0.5), "load", "a faster disk"),
        (reading(copy=used(0.9, 0.1, 0.0), waits=0.5), "copy", "more augmenters would not help"),
        (reading(waits=0.5), "window", "raise window"),
        (reading(waits=0.5, in_=0.9), "to-augmenter", "0.9 batches are between loader and augmenters"),
        (reading(waits=0.5, in_=0.9, out=2.0), "to-trainer", "2.0 batches are between augmenters and trainer"),
        (reading(load=used(0.75, 0.0, 0.25), waits=0.5), "load", "load-bound"),
    ],
)
def test_the_narrow_place_is_named(after: Reading, what: str, words: str) -> None:
    verdict = judge(NOTHING, after, augmenters=2)
    assert verdict.what == what
    assert verdict.what in BOTTLENECKS
    assert words in verdict.sentence


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (reading(copy=used(0.9, 0.1, 0.0), waits=0.5), "the copy stage, which decodes, is 90% busy"),
        (reading(copy=used(0.9, 0.1, 0.0), waits=0.5), "augmenters would help: decode = 'augmenter'"),
        (reading(transform=used(0.9, 0.1, 0.0), waits=0.5), "the trainer takes JPEG bytes in 90% of the time"),
        (reading(load=used(0.9, 0.0, 0.1), waits=0.5), "a faster disk"),
        (reading(waits=0.5, in_=0.9), "between loader and trainer"),
    ],
)
def test_a_trainer_that_decodes_itself_is_not_told_to_take_more_augmenters(after: Reading, words: str) -> None:
    verdict = judge(NOTHING, after, augmenters=0, decodes=True)
    assert words in verdict.sentence
    assert verdict.wanted == 0
    window = judge(NOTHING, reading(waits=0.5), augmenters=0, decodes=True)
    assert window.what == "window"
    assert "add augmenters" not in window.sentence


def test_the_loader_s_reason_goes_first() -> None:
    verdict = judge(NOTHING, reading(waits=0.9), augmenters=0, waiting="no augmenter is connected")
    assert (verdict.what, verdict.sentence) == ("peer", "waiting: no augmenter is connected")


def test_before_the_first_batch_nothing_is_blamed() -> None:
    verdict = judge(NOTHING, NOTHING, augmenters=1)
    assert (verdict.what, verdict.sentence) == ("starting", "nothing has been trained on yet")
    assert verdict.wanted == 0


@pytest.mark.parametrize(
    ("augmenters", "more"), [(1, "2 more augmenters"), (2, "1 more augmenter "), (3, "3 are enough")]
)
def test_the_sentence_says_how_many_more(augmenters: int, more: str) -> None:
    # 0.3 s of an augmenter for each batch, 0.1 s of the device.
    transform = Usage(100, 30.0, 1.0, 0.0)
    after = Reading({"transform": transform, "train": Usage(100, 10.0, 20.0, 0.0)}, 30.0)
    verdict = judge(NOTHING, after, augmenters=augmenters)
    assert verdict.wanted == 3
    assert more in verdict.sentence


@given(
    transform=st.floats(0.001, 10.0), train=st.floats(0.001, 10.0), load=st.floats(0.0, 10.0),
    batches=st.integers(1, 1000), present=st.integers(1, 50),
)  # fmt: skip
def test_as_many_augmenters_are_wanted_as_keep_the_trainer_fed_and_no_more(
    transform: float, train: float, load: float, batches: int, present: int
) -> None:
    """Whoever counted: the answer does not depend on how many there are now."""

    def of(seconds: float) -> Usage:
        return Usage(batches, seconds * batches, 1.0 * present, 0.0)

    wanted = wanted_augmenters(NOTHING, Reading({"load": of(load), "transform": of(transform), "train": of(train)}))
    slowest = max(train, load)
    assert wanted * slowest >= (1.0 - WAITING) * transform * (1 - 1e-9), "the trainer waits for more than is allowed"
    assert wanted == 1 or (wanted - 1) * slowest <= (1.0 - WAITING) * transform * (1 + 1e-9), "one less would do"


def test_replicas_are_fed_together() -> None:
    """A step of each costs the augmenters a share of the batch for each."""
    after = Reading({"transform": Usage(200, 30.0, 1.0, 0.0), "train": Usage(100, 10.0, 20.0, 0.0)}, 30.0)
    assert wanted_augmenters(NOTHING, after) == 2
    assert wanted_augmenters(NOTHING, after, replicas=2) == 3


def test_shares_of_an_interval() -> None:
    assert shares(Usage(2, 1.0, 1.0, 0.0), Usage(6, 4.0, 1.5, 0.5)) == Shares(0.75, 0.125, 0.125, 4)
    assert shares(Usage(), Usage()) == Shares(0.0, 0.0, 0.0, 0)
