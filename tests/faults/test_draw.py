from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.draw import EARLY, HELD_BY, RULES, STEPS, Fault, Moment, Role, Stop, World, draw

CAMPAIGN = [draw(seed) for seed in range(230)]
"""What ``make test-faults`` plays."""


@given(st.integers(0, 2**63 - 1))
def test_a_seed_replays(seed: int) -> None:
    assert draw(seed) == draw(seed)
    assert str(draw(seed)) == str(draw(seed))


@given(st.integers(0, 2**63 - 1))
def test_a_plan_can_be_carried_out(seed: int) -> None:
    plan = draw(seed)
    assert 1 <= plan.augmenters <= 3
    for strike in plan.strikes:
        assert strike.held in HELD_BY[strike.moment]
        assert 1 <= strike.count < STEPS
        for blow in strike.blows:
            rule = RULES[blow.fault]
            assert plan.world in rule.worlds
            assert strike.moment in rule.moments
            assert blow.role in rule.targets
            assert blow.role is not Role.ENGINE or plan.world is World.RUN
            assert blow.number < plan.augmenters
            assert rule.seconds[0] <= blow.seconds <= rule.seconds[1]
        assert len({blow.role for blow in strike.blows}) == len(strike.blows)
    order = list(Moment)
    places = [order.index(strike.moment) for strike in plan.strikes]
    assert places == sorted(set(places)), "a later strike is at a later moment"


@given(st.integers(0, 2**63 - 1))
def test_a_fault_that_ends_the_run_strikes_alone(seed: int) -> None:
    plan = draw(seed)
    if any(RULES[blow.fault].stop is not Stop.NEVER for blow in plan.blows):
        assert len(plan.blows) == 1
    if any(RULES[blow.fault].stop is Stop.ALWAYS for blow in plan.blows):
        assert plan.strikes[0].moment in EARLY


def test_the_campaign_has_every_fault_on_every_target_and_every_moment_in_every_world() -> None:
    kinds = Counter(blow.fault for plan in CAMPAIGN for blow in plan.blows)
    assert min(kinds[fault] for fault in Fault) >= len(CAMPAIGN) // len(Fault)
    hit = {(blow.fault, blow.role) for plan in CAMPAIGN for blow in plan.blows}
    assert hit == {(fault, role) for fault, rule in RULES.items() for role in rule.targets}
    assert {(s.moment, s.held) for plan in CAMPAIGN for s in plan.strikes} == {
        (moment, held) for moment, roles in HELD_BY.items() for held in roles
    }
    assert {(plan.world, strike.moment) for plan in CAMPAIGN for strike in plan.strikes} == {
        (world, moment) for world in World for moment in Moment
    }
    assert {(plan.world, plan.augmenters) for plan in CAMPAIGN} == {(world, n) for world in World for n in (1, 2, 3)}
    assert sum(len(strike.blows) == 2 for plan in CAMPAIGN for strike in plan.strikes) > 30, "two at once"
