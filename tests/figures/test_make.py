"""``fourstage figures``: the files it writes, its words for those that it cannot, its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from fourstage.figures.make import Made, Request, make_figures
from fourstage.resolve import load_settings, write_settings
from fourstage.store.prepare import prepare
from fourstage.trainer import checkpoint
from fourstage.trainer.networks import build_network
from tests.figures.conftest import Drawn, write_run
from tests.pipeline.harness import SIZE, fourstage, write_photographs

ONE_RUN = {"learning-curves.png", "figure-3.png", "figure-4-left.png", "figure-4-right.png", "timeline.png"}


def make(run_dirs: list[Path], out: Path, store: Path | None = None) -> tuple[list[Made], dict[str, str]]:
    request = Request(out=out, store=store, candidates=80, window=None, progress=lambda _: None)
    made, not_made = make_figures(run_dirs, request)
    return made, {figure.name: figure.why for figure in not_made}


def test_one_run_gives_every_figure_but_the_comparison(drawn: Drawn) -> None:
    done = fourstage("figures", "--run-dir", str(drawn.relu), "--store", str(drawn.store), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {Path(figure["file"]).name for figure in report["made"]} == ONE_RUN
    for figure in report["made"]:
        assert Path(figure["file"]).parent == drawn.relu / "figures"
        assert figure["shows"]
        with Image.open(figure["file"]) as image:
            assert image.format == "PNG"
            assert 1000 < image.width < 3000
            assert 300 < image.height < 3000
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
    (missing,) = report["not_made"]
    assert missing["name"] == "figure-1.png"
    assert "'tanh'" in missing["why"]
    assert {path.name for path in (drawn.relu / "figures").iterdir()} == ONE_RUN


def test_two_runs_are_compared_and_have_their_names_in_their_own_figures(drawn: Drawn, tmp_path: Path) -> None:
    made, missing = make([drawn.relu, drawn.tanh], tmp_path)
    assert {figure.file.name for figure in made} == {
        "learning-curves.png", "figure-1.png", "figure-3-relu.png", "figure-3-tanh.png", "timeline-relu.png",
    }  # fmt: skip
    assert set(json.loads((tmp_path / "figure-1.json").read_text())["activations"]) == {"relu", "tanh"}
    assert "--trace" in missing["timeline-tanh.png"]
    for name in ("figure-4-left-relu.png", "figure-4-right-tanh.png"):
        assert "--store" in missing[name]


def test_the_columns_of_alexnets_kernels(tmp_path: Path) -> None:
    settings = load_settings("alexnet", environment={}, flags={"augmenter.crop": 67})
    network = build_network(settings.model, classes=2, crop=67, seed=0)
    state = checkpoint.CheckpointState(
        step=7, next_seq=7, epoch=0, epoch_samples=1, receipt={}, store_fingerprint="", identity="", settings={}
    )
    conv1 = {"conv1.weight": dict(network.named_parameters())["conv1.weight"]}
    path = checkpoint.save(tmp_path, state, model=conv1, optimizer={}, keep=1)
    assert load_file(path / "model.safetensors")["conv1.weight"].shape == (96, 3, 11, 11)
    (tmp_path / "settings.toml").write_text(write_settings(settings))
    made, _ = make([tmp_path], tmp_path / "two")
    one_column = settings.model_copy(update={"model": settings.model.model_copy(update={"columns": 1})})
    (tmp_path / "settings.toml").write_text(write_settings(one_column))
    made += make([tmp_path], tmp_path / "one")[0]
    assert [figure.shows for figure in made] == ["the kernels of the first layer after 7 steps"] * 2
    heights = [Image.open(figure.file).height for figure in made]
    assert heights[0] > heights[1]


def test_what_a_run_lacks_is_said_of_each_figure(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "relu", [])
    _, missing = make([run.path], tmp_path / "figures")
    assert set(missing) == ONE_RUN | {"figure-1.png"}
    assert "no step with a loss" in missing["learning-curves.png"]
    assert "no checkpoint" in missing["figure-3.png"]
    assert "no trace.json" in missing["timeline.png"]


def test_a_store_of_other_classes_is_refused(drawn: Drawn, tmp_path: Path) -> None:
    write_photographs(tmp_path, "train", 2)
    prepare(tmp_path / "train", tmp_path / "store", size=SIZE, workers=1)
    _, missing = make([drawn.relu], tmp_path / "figures", tmp_path / "store")
    for name in ("figure-4-left.png", "figure-4-right.png"):
        assert "10 classes" in missing[name]
        assert "has 3" in missing[name]


def test_no_figure_at_all_is_a_failure_with_reasons(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "relu", [])
    done = fourstage("figures", "--run-dir", str(run.path))
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 6
    assert done.stderr.startswith("fourstage: no figure can be made of")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run-dir", "RUN", "--timeline", "9"], "FIRST:LAST"),
        (["--run-dir", "RUN", "--neighbours-from", "0"], "--neighbours-from"),
        (["--run-dir", "nowhere"], "holds no run"),
        ([], "--run-dir"),
    ],
)
def test_wrong_usage_is_code_two(drawn: Drawn, arguments: list[str], words: str) -> None:
    done = fourstage("figures", *(str(drawn.relu) if part == "RUN" else part for part in arguments))
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("package", "code", "words"),
    [("matplotlib", 1, "fourstage[figures]"), ("torch", 0, "figure-3.png is not made: it needs torch")],
)
def test_a_package_that_is_missing_is_named_with_the_command(
    drawn: Drawn, tmp_path: Path, package: str, code: int, words: str
) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from fourstage.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "figures", "--run-dir", str(drawn.relu), "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert words in done.stdout + done.stderr
    assert "pip install 'fourstage[" in done.stdout + done.stderr


def test_a_folder_that_cannot_be_made_is_named(drawn: Drawn, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = fourstage("figures", "--run-dir", str(drawn.relu), "--out", str(tmp_path / "file" / "figures"))
    assert done.returncode == 2
    assert "--out" in done.stderr
