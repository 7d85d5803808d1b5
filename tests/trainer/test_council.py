"""What trainers agree on before each step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.errors import FourstageError
from fourstage.trainer.council import Vote, decide

DIGEST = 16

votes = st.builds(
    Vote,
    ready=st.booleans(),
    stop=st.booleans(),
    save=st.booleans(),
    rate=st.one_of(st.just(math.nan), st.floats(0.0, 1.0)),
    samples=st.integers(0, 4).flatmap(lambda rows: st.binary(min_size=rows * DIGEST, max_size=rows * DIGEST)),
)


@given(votes, st.integers(4, 8))
def test_a_vote_travels_whole_and_all_have_one_length(vote: Vote, rows: int) -> None:
    packed = vote.pack(rows)
    assert len(packed) == len(Vote(ready=False).pack(rows))
    back = Vote.unpack(packed)
    assert (back.ready, back.stop, back.save, back.samples) == (vote.ready, vote.stop, vote.save, vote.samples)
    assert back.rate == vote.rate or (math.isnan(back.rate) and math.isnan(vote.rate))


@given(st.lists(votes, min_size=1, max_size=5))
def test_the_step_is_taken_only_when_all_are_ready_and_none_was_told_to_stop(cast: list[Vote]) -> None:
    decision = decide(cast, columns=1)
    assert decision.go == all(vote.ready and not vote.stop for vote in cast)
    assert decision.save == cast[0].save
    assert decision.rate == (None if math.isnan(cast[0].rate) else cast[0].rate)
    assert decision.samples == b"".join(vote.samples for vote in cast)


def test_the_columns_of_a_replica_count_their_samples_once() -> None:
    first, second = (Vote(ready=True, samples=bytes([n]) * DIGEST) for n in (1, 2))
    assert decide([first, first, second, second], columns=2).samples == first.samples + second.samples


def test_columns_that_were_given_different_bytes_do_not_train() -> None:
    first, second = (Vote(ready=True, samples=bytes([n]) * DIGEST) for n in (1, 2))
    with pytest.raises(FourstageError, match="replica 1 were given different samples"):
        decide([first, first, first, second], columns=2)
