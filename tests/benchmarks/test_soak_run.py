"""A short soak of real processes: what is disturbed comes back, what is seen is theirs, the receipt is arithmetic's."""

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.bench import make_store
from benchmarks.soak.__main__ import exit_code, table, trains
from benchmarks.soak.disturb import KINDS
from benchmarks.soak.draw import draw
from benchmarks.soak.expected import expected_digest
from benchmarks.soak.findings import ROLES, Window, findings
from benchmarks.soak.run import Plan, Soaked, soak
from benchmarks.soak.watch import Vitals

from fourstage.figures.style import house_style, save
from fourstage.resolve import load_settings, read_toml, validated
from fourstage.store import open_store
from fourstage.store.prepare import prepare
from tests.pipeline.harness import SIZE, write_photographs

SMALL = ("--recipe", "drain", "--set", "augmenter.crop=32", "--set", "batch_size=16")
SHORT = Plan(seconds=8.0, seed=1, gaps=(0.8, 1.2), settle=0.3, flags=(*SMALL, "--set", "train.step_seconds=0.005"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images of 40x40, noisy ones: no crop is like another, or its reflection."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, "train", 80)
    prepare(folder / "train", folder / "store", size=SIZE, workers=1)
    return folder / "store"


@pytest.fixture(scope="module")
def soaked(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Soaked, Path]:
    """Eight seconds of an otherwise usual soak, and its folder."""
    folder = tmp_path_factory.mktemp("soak")
    return soak(store, folder, SHORT), folder


def test_the_receipt_is_what_arithmetic_makes_of_as_many_steps(soaked: tuple[Soaked, Path], store: Path) -> None:
    summary = soaked[0].summary
    settings = validated(read_toml(soaked[1] / "run" / "settings.toml"))
    assert settings.receipt == "pixels"
    assert summary["steps"] > 50
    assert len(soaked[0].steps) == summary["steps"]
    assert expected_digest(settings, open_store(store), summary["steps"]) == summary["receipt"]["digest"]


def test_one_pixel_setting_or_step_more_is_another_receipt(store: Path) -> None:
    settings = load_settings("drain", overrides=["augmenter.crop=32", "batch_size=16"], flags={"receipt": "pixels"})
    others = [("augmenter.crop", 33), ("seed", 1), ("augment", False), ("batch_size", 15)]
    changed = [
        load_settings("drain", overrides=["augmenter.crop=32", "batch_size=16", f"{name}={value}"],
                      flags={"receipt": "pixels"})
        for name, value in others
    ]  # fmt: skip
    digests = [expected_digest(each, open_store(store), 20) for each in (settings, *changed)]
    digests += [expected_digest(settings, open_store(store), steps) for steps in (0, 19, 21)]
    assert len(set(digests)) == len(digests)


def test_everything_happened_and_every_role_was_seen(soaked: tuple[Soaked, Path]) -> None:
    seen = soaked[0]
    kinds = [act.kind for act in seen.acts]
    assert set(kinds) <= set(KINDS)
    assert len(seen.acts) + len(seen.missed) >= 3
    lives: dict[str, set[int]] = defaultdict(set)
    for sample in seen.samples:
        for name, pid in sample.processes:
            lives[name].add(pid)
    assert {name.partition("-")[0] for name in lives} == set(ROLES)
    assert len(lives["trainer"]) == len(lives["run"]) == len(lives["augmenter-0"]) == 1
    assert ("kill loader" in kinds) == (len(lives["loader"]) > 1)
    assert seen.left_behind == []


def test_what_a_process_holds_is_counted(soaked: tuple[Soaked, Path]) -> None:
    for sample in soaked[0].samples:
        for (name, _), held in sample.processes.items():
            assert isinstance(held, Vitals)
            assert held.threads >= 1
            assert 0.1 < held.private < 2000.0, name
    last = {name: held for (name, _), held in soaked[0].samples[-1].processes.items()}
    assert last["trainer"].arenas > 0.0
    assert last["run"].arenas == 0.0
    assert last["trainer"].descriptors > 10
    assert soaked[0].samples[-1].stream.steps > soaked[0].samples[1].stream.steps


def test_so_short_a_soak_proves_nothing_and_says_so(soaked: tuple[Soaked, Path], tmp_path: Path) -> None:
    seen = soaked[0]
    found = findings(seen.samples, seen.steps, Window.of(SHORT.seconds))
    words = {finding.judgement.word for finding in found}
    assert words == {"open"}
    assert exit_code(words, sound=True) == 3
    assert len(table(found).splitlines()) == len(found) + 1
    with house_style():
        save(draw(seen.samples, seen.acts, seen.steps, found, "eight seconds"), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes()[:4] == b"\x89PNG"


def test_it_fails_for_a_rise_a_wrong_digest_or_what_was_left_behind() -> None:
    assert exit_code({"flat"}, sound=True) == 0
    assert exit_code({"flat", "open"}, sound=True) == 3
    assert exit_code({"flat", "open", "rises"}, sound=True) == 1
    assert exit_code({"flat"}, sound=False) == 1


def test_a_run_that_cannot_begin_is_told_with_its_own_words(store: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="crop = 41 is larger"):
        soak(store, tmp_path, replace(SHORT, flags=("--recipe", "drain", "--set", "augmenter.crop=41")))


@pytest.mark.slow
@pytest.mark.parametrize("form", [(), ("--trainer",)])
def test_the_whole_program(tmp_path: Path, form: tuple[str, ...]) -> None:
    store = make_store(tmp_path, images=200, size=256)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--store", str(store), "--minutes", "0.4", "--gaps", "1.5", "3",
         "--json", str(tmp_path / "soak.json"), "--plot", str(tmp_path / "soak.png"), *form],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    assert "the same" in done.stdout
    told = json.loads((tmp_path / "soak.json").read_text())
    assert told["digest"] == told["expected"]
    assert told["left_behind"] == []
    assert sum(told["counts"][kind] for kind in KINDS) == len(told["disturbances"]) >= 4
    assert {finding["role"] for finding in told["findings"]} == {*ROLES, "together", "stream"}
    assert (tmp_path / "soak.png").stat().st_size > 10_000
    checkpoints = told["samples"][-1]["stream"]["checkpoints"]
    assert checkpoints >= 1
    assert ("validation_split=train" in " ".join(trains(store))) == bool(store)
