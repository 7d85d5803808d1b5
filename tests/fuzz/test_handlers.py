"""Some thousand seeded cases for every handler; ``make test-fuzz`` has the long form."""

from pathlib import Path

import pytest

from tests.fuzz.campaign import run
from tests.fuzz.targets import TARGETS

CASES = 2000


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_peers_send_is_handled_or_a_counted_fault(name: str, tmp_path: Path) -> None:
    outcome = run(TARGETS[name], name, tmp_path, seed=2012, cases=CASES)
    assert outcome.failure is None, f"{outcome.failure.what}\n{outcome.failure.frames}"
    assert outcome.cases == CASES
    assert outcome.worked > 0, "nothing came through: the harness reaches nothing"
