"""Loans: any course of events gives each batch back once, and only when nobody reads it."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.errors import PeerError
from fourstage.trainer.inbox import FeedBatch
from fourstage.trainer.relay.loans import Loans


def batch(seq: int) -> FeedBatch:
    return cast(FeedBatch, SimpleNamespace(seq=seq))


@given(st.data())
def test_each_batch_is_free_once_and_only_when_nobody_reads_it(data: st.DataObject) -> None:
    loans = Loans()
    here: set[int] = set()
    there: set[int] = set()
    free: list[int] = []
    lent = seen = 0
    for step in data.draw(st.lists(st.sampled_from(["lend", "here", "there", "reads", "dies"]), max_size=30)):
        released: list[FeedBatch] = []
        match step:
            case "lend":
                assert loans.lend(batch(lent)) == lent + 1
                here.add(lent)
                lent += 1
            case "here" if here:
                seq = data.draw(st.sampled_from(sorted(here)))
                here.remove(seq)
                released = loans.end_here(seq)
            case "reads" if seen < lent:
                there.add(seen)
                seen += 1
            case "there" if there:
                there.remove(data.draw(st.sampled_from(sorted(there))))
                released = loans.reconcile(seen, sorted(there))
                # What was said once may be said again.
                assert loans.reconcile(seen, sorted(there)) == []
            case "dies":
                there.clear()
                seen = lent
                released = loans.end_there()
        free += [freed.seq for freed in released]
        unread = set(range(seen, lent))
        assert here.isdisjoint(free)
        assert there.isdisjoint(free)
        assert unread.isdisjoint(free)
        assert len(set(free)) == len(free)
    rest = [freed.seq for freed in loans.end_there()]
    for seq in sorted(here):
        rest += [freed.seq for freed in loans.end_here(seq)]
    assert sorted(free + rest) == list(range(lent))


@pytest.mark.parametrize(("seen", "held"), [(3, (0,)), (2, (5,)), (1, (1,)), (2, (0,))])
def test_words_on_batches_that_were_not_lent_are_refused(seen: int, held: Any) -> None:
    loans = Loans()
    loans.lend(batch(0))
    loans.lend(batch(1))
    assert loans.reconcile(1, ()) == []
    with pytest.raises(PeerError, match="lent were"):
        loans.reconcile(seen, held)
