"""Another host's clock, from questions and answers."""

from hypothesis import given
from hypothesis import strategies as st

from fourstage.wire.clock import ClockOffset

delays = st.floats(0.0, 2.0)


@given(true=st.floats(-1e6, 1e6), ways=st.lists(st.tuples(delays, delays), min_size=1, max_size=60))
def test_the_error_is_at_most_half_of_the_shortest_way_there_and_back(
    true: float, ways: list[tuple[float, float]]
) -> None:
    clock, now = ClockOffset(), 1e6
    for there, back in ways:
        clock.add(asked=now, theirs=now + there + true, answered=now + there + back)
        now += there + back + 1.0
    remembered = ways[-32:]
    assert abs(clock.seconds - true) <= min(there + back for there, back in remembered) / 2 + 1e-6


def test_before_the_first_answer_the_clocks_are_taken_for_one() -> None:
    assert ClockOffset().seconds == 0.0
