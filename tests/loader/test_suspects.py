"""The search for the row that kills its workers."""

from hypothesis import given
from hypothesis import strategies as some

from fourstage.loader.suspects import PROOFS, Suspects


@given(data=some.data(), rows=some.integers(1, 65_536))
def test_the_one_row_that_always_kills_is_named_and_nothing_else(data: some.DataObject, rows: int) -> None:
    guilty = data.draw(some.integers(0, rows - 1))
    suspects, deaths = Suspects(0, rows), 0
    for _ in range(rows.bit_length() + PROOFS):
        first, end = suspects.trial
        assert 0 <= first < end <= rows
        if first <= guilty < end:
            deaths += 1
            if (named := suspects.died()) is not None:
                assert named == guilty
                assert deaths <= rows.bit_length() + PROOFS
                return
        else:
            assert not suspects.survived(), "acquitted"
    raise AssertionError("not named in time")


@given(rows=some.integers(1, 4096), deaths=some.lists(some.booleans(), max_size=64))
def test_a_batch_without_a_guilty_row_is_acquitted_or_its_workers_died_alone_with_one_row_twice(
    rows: int, deaths: list[bool]
) -> None:
    suspects, alone = Suspects(0, rows), 0
    for died in [*deaths, *[False] * (rows.bit_length() + 1)]:
        first, end = suspects.trial
        only = end - first == 1
        if died:
            alone += only
            if suspects.died() is not None:
                assert alone >= PROOFS
                return
        elif suspects.survived():
            return
    raise AssertionError("neither")
