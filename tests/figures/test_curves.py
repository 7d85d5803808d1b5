"""Runs as figures read them, and their learning curves."""

import json
from pathlib import Path

import numpy as np
import pytest

from fourstage.errors import FourstageError, SettingsError
from fourstage.figures import curves
from fourstage.figures.runs import Run, open_runs
from tests.figures.conftest import Drawn, points, write_run
from tests.pipeline.harness import lines


def test_three_panels_show_what_the_run_wrote(drawn: Drawn) -> None:
    figure = curves.draw([Run("relu", drawn.relu)])
    errors, loss, rate = figure.axes
    told = lines(drawn.relu / "epochs.jsonl")
    for line, split in zip(errors.lines, ("train", "val"), strict=True):
        expected = [(epoch["epoch"] + 1, 100 * epoch[split]["top1_error"]) for epoch in told]
        assert points(line) == [pytest.approx(point) for point in expected]
    assert {text.get_text().split()[0] for text in errors.texts} == {"training", "validation"}
    steps = lines(drawn.relu / "steps.jsonl")
    assert points(loss.lines[0]) == [pytest.approx((step["step"], step["loss"])) for step in steps]
    assert points(rate.lines[0]) == [(step["step"], step["learning_rate"]) for step in steps]
    assert [axes.get_xlabel() for axes in (errors, rate)] == ["epochs trained", "step"]
    assert "nats" in loss.get_ylabel()


def test_several_runs_lie_over_one_another_under_their_names(drawn: Drawn) -> None:
    figure = curves.draw(open_runs([drawn.relu, drawn.tanh]))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["relu", "tanh"]
    errors, loss, _ = figure.axes
    assert len(errors.lines) == 4
    assert len(loss.lines) == 2
    assert loss.lines[0].get_color() == errors.lines[0].get_color() == errors.lines[1].get_color()
    assert loss.lines[1].get_color() == errors.lines[2].get_color() != loss.lines[0].get_color()


def test_runs_without_a_loss_are_left_out_and_none_is_an_error(drawn: Drawn, tmp_path: Path) -> None:
    empty = write_run(tmp_path / "empty", "relu", [])
    figure = curves.draw([empty, Run("tanh", drawn.tanh)])
    assert not figure.legends
    with pytest.raises(FourstageError, match="no step with a loss"):
        curves.draw([empty])


def test_a_part_of_an_epoch_lies_at_the_share_that_was_trained(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "relu", [0.5, 0.4], steps_per_epoch=8)
    with (run.path / "epochs.jsonl").open("a") as file:
        for step, error in ((18, 0.3), (20, 0.2)):
            line = {"epoch": 2, "step": step, "train": {"top1_error": error}, "val": None}
            file.write(json.dumps(line) + "\n")
    curve = run.errors("train")
    assert curve.epochs == (1.0, 2.0, 2.5)
    assert curve.errors == (0.5, 0.4, 0.2)
    assert run.errors("val").epochs == ()


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/relu", "b/relu")]
    for path in paths:
        write_run(path, "relu", [0.5])
    assert [run.name for run in open_runs(paths)] == ["a-relu", "b-relu"]
    assert [run.name for run in open_runs(paths[:1])] == ["relu"]
    with pytest.raises(SettingsError, match="given twice"):
        open_runs([paths[0], paths[0]])
    with pytest.raises(SettingsError, match="holds no run"):
        open_runs([tmp_path])


def test_the_running_mean_is_the_mean_of_each_stretch() -> None:
    values = np.random.default_rng(0).normal(size=50)
    expected = [values[begin : begin + 7].mean() for begin in range(44)]
    assert curves.running_mean(values, 7) == pytest.approx(expected)
