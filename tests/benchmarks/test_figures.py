"""How the benchmarks make figures of what they see."""

import datetime
import os
import time
from pathlib import Path

import pytest
from benchmarks.bench import cpu_seconds, spread, thread_seconds, write_figures
from benchmarks.scheduler import Reading, between, work_seconds
from benchmarks.stages import SECONDS, permutations, settings, step_seconds
from benchmarks.startup import first_passage, import_costs, last_step, log_moment

from fourstage.loader.streams import MOST_SLOTS
from fourstage.trace import STAGE_ROWS, Passage, events
from fourstage.wire.messages import Times


def test_a_spread_is_the_median_and_both_ends() -> None:
    assert spread([3.0, 1.0, 10.0]) == {"median": 3.0, "least": 1.0, "most": 10.0}


def test_every_stage_is_the_longest_once_and_no_two_are_equal() -> None:
    turns = list(permutations())
    assert [max(turn, key=lambda name: turn[name]) for turn in turns] == ["train", "load", "transform", "copy"]
    assert all(sorted(turn.values()) == sorted(SECONDS) for turn in turns)
    assert max(SECONDS) <= 1.2 * min(SECONDS) + 1e-9


def test_two_augmenters_take_twice_as_long_for_each_batch() -> None:
    assert settings(next(permutations()))["augmenter.batch_seconds"] == pytest.approx(0.22)


def passages(beginnings: list[float]) -> list[dict[str, object]]:
    """The timeline of batches whose steps began then; each was copied before."""
    found: list[dict[str, object]] = []
    for seq, began in enumerate(beginnings):
        passage = Passage(
            "augmenter-0", Times(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 0.0, began - 2, began - 1.5, began - 1, began,
            began + 0.5,
        )  # fmt: skip
        found += events(seq, "train", passage, rank=0, lane=0)
    return found


def test_step_time_is_from_beginning_to_beginning_without_the_first_steps() -> None:
    assert step_seconds(passages([10.0, 20.0, 21.0, 23.0]), warm_up=1) == pytest.approx(1.5)


def test_the_first_passage_has_every_stage_of_batch_0_alone() -> None:
    moments = first_passage(passages([10.0, 20.0]))
    assert set(moments) == {f"{stage} {end}" for stage in STAGE_ROWS for end in ("began", "ended")}
    assert moments["train began"] == pytest.approx(10.0)
    assert moments["load ended"] == pytest.approx(0.2)


def test_the_last_step_is_the_one_that_ended_last() -> None:
    assert last_step(passages([10.0, 20.0, 15.0])) == pytest.approx(20.5)


def test_a_log_line_is_a_moment_also_past_midnight() -> None:
    evening = datetime.datetime(2026, 11, 21, 23, 59, 59).astimezone().timestamp()
    lines = ["23:59:59.500 loader INFO metrics at http://HERE", "00:00:01.250 loader INFO serving STORE"]
    assert log_moment(lines, "metrics at", after=evening) == pytest.approx(evening + 0.5)
    assert log_moment(lines, "serving", after=evening) == pytest.approx(evening + 2.25)
    with pytest.raises(ValueError, match="nothing like it"):
        log_moment(lines, "nothing like it", after=evening)


def test_import_costs_go_to_the_package_that_a_module_belongs_to() -> None:
    report = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:      1000 |       1000 |     zmq.backend\n"
        "import time:       500 |       1500 |   zmq\n"
        "import time:      2000 |       2000 |   json\n"
        "import time:       250 |       3750 | fourstage.wire\n"
        "a warning of somebody else | with | bars\n"
    )
    costs, total = import_costs(report)
    assert costs == {"standard library": 2.0, "zmq": 1.5, "fourstage": 0.25}
    assert total == 3.75


def test_a_lease_costs_what_the_loader_spent_over_the_leases_between() -> None:
    before = Reading(10.0, 100, {"main": 1.0, "zmq": 0.0, "other": 0.5}, 3.0)
    after = Reading(12.0, 1100, {"main": 1.2, "zmq": 0.1, "other": 0.6}, 4.0)
    figures = between(before, after)
    assert figures["leases_per_second"] == 500.0
    assert figures["microseconds_per_lease"] == pytest.approx(400.0)
    assert figures["microseconds_main"] == pytest.approx(200.0)
    assert figures["loader_busy"] == pytest.approx(0.2)
    assert figures["players_busy"] == 0.5


def test_paced_work_knows_that_a_stream_has_so_many_slots() -> None:
    assert work_seconds(10, 1, 500.0) == 0.02
    assert work_seconds(3 * MOST_SLOTS, 1, 500.0) == MOST_SLOTS / 500.0
    assert work_seconds(500, 16, 500.0) == 1.0


def test_the_kernel_counts_this_process() -> None:
    before = cpu_seconds(os.getpid())
    spent = time.process_time()
    while time.process_time() - spent < 0.05:
        pass
    assert cpu_seconds(os.getpid()) - before >= 0.04
    assert set(thread_seconds(os.getpid())) == {"main", "zmq", "other"}


def test_figures_are_written_only_where_they_are_asked_for(tmp_path: Path) -> None:
    write_figures(None, {"ratio": 1.0})
    write_figures(tmp_path / "figures.json", {"ratio": 1.0})
    assert (tmp_path / "figures.json").read_text() == '{\n "ratio": 1.0\n}\n'
