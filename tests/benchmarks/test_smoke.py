"""Every benchmark measures something: real processes, as little of them as there can be. No figure is judged."""

from itertools import pairwise
from pathlib import Path

import pytest
from benchmarks.bench import make_store

from benchmarks import carriers, cost, loopback, pipeline, reads, scaling, scheduler, stages, startup
from fourstage.store import open_store
from fourstage.trace import STAGE_ROWS


def test_stages_has_a_step_time_that_is_no_shorter_than_the_longest_stage(store: Path) -> None:
    seconds = dict.fromkeys(STAGE_ROWS, 0.02) | {"train": 0.05}
    figures = stages.measure(store, seconds, warm_up=2, steps=6)
    assert figures["step_seconds"] >= 0.05
    assert figures["ratio"] == pytest.approx(figures["step_seconds"] / 0.05)


def test_startup_knows_every_moment_in_its_order(store: Path) -> None:
    moments = startup.measure(store, augmenters=1)
    way = [
        "loader up", "loader serving", "stream opened", "load began", "load ended", "transform began",
        "transform ended", "copy began", "copy ended", "train began", "train ended", "last step ended",
        "command returned",
    ]  # fmt: skip
    assert {"trainer up", "augmenter-0 up", *way} <= set(moments)
    # A log's lines are whole milliseconds.
    assert all(moments[one] <= moments[next_] + 0.002 for one, next_ in pairwise(way))


def test_scheduler_counts_leases_of_both_loads(store: Path) -> None:
    paced, full = scheduler.measure(store, 3, 2, rows=1, rate=100.0, rounds=2, seconds=0.3)
    for entry, load in ((paced, "paced"), (full, "full")):
        assert entry["load"] == load
        assert entry["leases"] > 0
        assert entry["microseconds_per_lease"]["median"] > 0
        assert min(entry["pss_bytes"]) > 1e6
        assert "full" in scheduler.show(full)


def test_carriers_knows_each_process_and_the_wire(store: Path) -> None:
    assert carriers.messages_cost(3) > 0
    (figures,) = carriers.processes_cost(store, rounds=1, seconds=0.1)
    assert set(figures) == {"loader", "augmenter", "trainer", "run"}
    assert min(figures["loader"], figures["augmenter"], figures["trainer"]) > 0


def test_carriers_moves_whole_batches_between_two_processes() -> None:
    assert loopback.inline_rate(5) > 0


def test_cost_knows_every_process_and_every_part(tmp_path: Path) -> None:
    whole = make_store(tmp_path, images=2 * cost.ROWS, size=256)
    spent = cost.processes_cost(whole, 1, 0.2)
    assert {"loader, main", "augmenter, main", "trainer, main", "run"} <= set(spent)
    assert cost.raw_cost(pipeline.Images(whole), 2, 20) > 0
    parts = cost.parts_cost(whole, batches=2)
    assert set(parts) == {"read", "draw", "decode", "crop", "unpack", "digest", "messages"}
    assert all(parts[name]["median"] > 0 for name in parts if name != "crop")


def test_reads_reads_a_whole_epoch_cold_or_warm(tmp_path: Path) -> None:
    split = open_store(make_store(tmp_path, images=2 * reads.ROWS, size=8)).split("train")
    reads.forget(split)
    for threads in (1, 3):
        figures = reads.read_epoch(split, threads)
        assert figures["images_per_second"] > 0
        assert figures["megabytes_per_second"] > 0


def test_scaling_doubles_up_to_twice_the_cores() -> None:
    assert scaling.doubling(4) == [1, 2, 4]
    assert scaling.doubling(7) == [1, 2, 4]
