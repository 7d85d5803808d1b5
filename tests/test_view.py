"""What a person sees of a run."""

import time
from typing import Any

import pytest
from rich.console import Console

from fourstage.view import render

PART = {"busy": 0.5, "wait_upstream": 0.25, "wait_downstream": 0.25, "batches": 10}


def shown(**changes: Any) -> str:
    status: dict[str, Any] = {
        "state": "running", "written_at": time.time(), "step": 5, "steps": 10, "epoch": 0, "loss": 1.25,
        "learning_rate": 0.01, "train": None, "val": None, "images_per_second": 100.0, "seconds": 5.0,
        "seconds_left": 5.0, "augmenters": 2, "augmenters_wanted": 3, "window": 8,
        "queues": {"loaded": 1, "leased": 2, "arrived": 3},
        "stages": dict.fromkeys(("load", "transform", "copy", "train"), PART),
        "bottleneck": "transform-bound: as an example",
    }  # fmt: skip
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(render(status | changes))
    return captured.get()


def test_where_it_stands_and_what_it_waits_for_is_on_one_screen() -> None:
    text = shown()
    for words in ("step 5 of 10", "transform x2 (3 would do)", "3 of 8", "transform-bound: as an example", "1.2500"):
        assert words in text
    assert "is it still there" not in text


def test_as_many_augmenters_as_are_wanted_are_only_counted() -> None:
    assert "transform x2 " in shown(augmenters_wanted=2)
    assert "would do" not in shown(augmenters_wanted=2)
    assert "would do" not in shown(augmenters_wanted=0)


def test_a_trainer_that_decodes_itself_shows_as_its_own_transform_stage() -> None:
    text = shown(decode="device", augmenters=0)
    assert "transform (trainer)" in text
    assert "transform x" not in text


@pytest.mark.parametrize(
    ("state", "said"), [("running", True), ("done", False), ("interrupted", False), ("failed", False)]
)
def test_a_status_that_is_no_longer_written_says_so(state: str, said: bool) -> None:
    text = shown(state=state, written_at=time.time() - 90)
    assert ("nothing was heard of the trainer for 1 min 30 s" in text) == said


def test_a_run_that_has_failed_says_why_and_not_what_it_waited_for() -> None:
    text = shown(state="failed", failure="the sample 'n1/x' cannot be decoded")
    assert " failed " in text
    assert "the sample 'n1/x' cannot be decoded" in text
    assert "transform-bound" not in text
    assert "left" not in text
