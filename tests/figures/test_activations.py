"""Figure 1: what it compares, what it says, and how it is drawn."""

import json
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from fourstage.errors import FourstageError
from fourstage.figures import activations
from tests.figures.conftest import points, write_run

FAST, SLOW = [0.5, 0.3, 0.2, 0.1], [0.6, 0.5, 0.4, 0.35, 0.3, 0.26, 0.22, 0.2]


def axes_of(groups: dict[str, activations.Group]) -> Axes:
    (axes,) = activations.draw(groups).axes
    return axes


def test_the_epochs_to_a_quarter_and_their_ratio_are_in_title_marks_and_numbers(tmp_path: Path) -> None:
    groups = activations.compare([write_run(tmp_path / "t", "tanh", SLOW), write_run(tmp_path / "r", "relu", FAST)])
    numbers = json.loads(json.dumps(activations.numbers(groups)))
    assert numbers["activations"]["relu"]["crossing_epochs"] == pytest.approx(2.5)
    assert numbers["activations"]["tanh"]["crossing_epochs"] == pytest.approx(6.25)
    assert numbers["activations"]["tanh"]["runs"] == [{"run": "t", "crossing_epochs": pytest.approx(6.25)}]
    assert numbers["ratio"] == pytest.approx(2.5)
    axes = axes_of(groups)
    assert "2.5 times" in axes.get_title(loc="left")
    marks = [points(line) for line in axes.lines if line.get_marker() == "o"]
    assert marks == [[pytest.approx((2.5, 25.0))], [pytest.approx((6.25, 25.0))]]
    assert [text.get_text() for text in axes.texts] == ["2.5 epochs", "6.2 epochs"]


def test_relu_is_solid_and_tanh_dashed_as_in_the_paper(tmp_path: Path) -> None:
    axes = axes_of(
        activations.compare([write_run(tmp_path / "r", "relu", FAST), write_run(tmp_path / "t", "tanh", SLOW)])
    )
    named = {str(line.get_label()): line for line in axes.lines}
    assert [error for _, error in points(named["ReLU"])] == pytest.approx([50.0, 30.0, 20.0, 10.0])
    assert named["ReLU"].get_linestyle() == "-"
    assert named["tanh"].get_linestyle() == "--"


def test_runs_of_several_seeds_are_a_mean_with_its_spread(tmp_path: Path) -> None:
    lower = [error - 0.1 for error in FAST]
    runs = [
        write_run(tmp_path / "r0", "relu", FAST),
        write_run(tmp_path / "r1", "relu", lower[:3]),
        write_run(tmp_path / "t", "tanh", SLOW),
    ]
    groups = activations.compare(runs)
    assert groups["relu"].runs == ("r0", "r1")
    assert groups["relu"].line.mean.epochs == (1.0, 2.0, 3.0)
    assert groups["relu"].line.mean.errors == pytest.approx((0.45, 0.25, 0.15))
    assert groups["relu"].crossing == pytest.approx(2.0)
    assert groups["relu"].crossings == pytest.approx((2.5, 1.75))
    axes = axes_of(groups)
    assert any(str(line.get_label()).startswith("ReLU, mean of 2 runs") for line in axes.lines)
    assert sum(isinstance(collection, PolyCollection) for collection in axes.collections) == 1


def test_a_level_that_is_never_reached_is_said_and_gives_no_ratio(tmp_path: Path) -> None:
    groups = activations.compare(
        [write_run(tmp_path / "r", "relu", FAST), write_run(tmp_path / "t", "tanh", [0.6, 0.5])]
    )
    assert activations.numbers(groups)["ratio"] is None
    assert activations.numbers(groups)["activations"]["tanh"]["crossing_epochs"] is None
    axes = axes_of(groups)
    assert axes.get_title(loc="left") == "tanh never reached 25 % training error: no ratio"
    assert len(axes.texts) == 1


def test_a_level_that_was_reached_within_the_first_epoch_is_no_measurement(tmp_path: Path) -> None:
    groups = activations.compare(
        [write_run(tmp_path / "r", "relu", [0.2, 0.1]), write_run(tmp_path / "t", "tanh", SLOW)]
    )
    assert activations.numbers(groups)["ratio"] is None
    assert "ReLU had reached 25 % training error within the first epoch" in axes_of(groups).get_title(loc="left")


def test_without_one_of_the_two_it_says_which_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FourstageError, match=r"'tanh'.*--run-dir"):
        activations.compare([write_run(tmp_path / "r", "relu", FAST), write_run(tmp_path / "t", "tanh", [])])
