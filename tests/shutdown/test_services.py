"""Services and commands one by one, ended by a person, by ``docker stop``, by a terminal that closes."""

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fourstage.store import open_store
from fourstage.store.prepare import prepare
from tests.pipeline.harness import SIZE, eventually, write_photographs
from tests.shutdown.moments import World
from tests.shutdown.traces import Command

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def ended(words: Sequence[str], folder: Path, *numbers: int, ready: str = "", delay: float = 0.0) -> tuple[int, str]:
    """Start a command, send the signals once it says ``ready``; its exit code and words. Nothing may be left of it."""
    command = Command(["-m", "fourstage", *words], folder)
    try:
        eventually(lambda: ready in command.said or command.process.poll() is not None, ready, 60.0)
        time.sleep(delay)
        for number in numbers:
            command.signal(number)
        code = command.end(60.0)
        assert code is not None, f"does not end: {command.said}"
        assert command.left() == []
        assert "Traceback" not in command.said
        return code, command.said
    finally:
        command.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_loader_that_serves_stops(store: Path, short: Path, number: int) -> None:
    words = ["loader", "--store", str(store), "--set", f"loader.address=file:{short / 'address'}"]
    code, said = ended(words, short / "loader", number, ready="serving")
    assert code == 0, said
    assert "stopped" in said


def test_an_augmenter_stops_while_it_looks_for_its_loader(short: Path) -> None:
    words = ["augmenter", "--set", f"loader.address=file:{short / 'nowhere'}"]
    code, said = ended(words, short / "augmenter", signal.SIGTERM, ready="metrics at")
    assert code == 0, said


@pytest.mark.parametrize("number", SIGNALS[:2])
def test_a_trainer_stops_while_it_waits_for_a_loader(short: Path, number: int) -> None:
    words = ["trainer", "--run-dir", str(short / "run"), "--settings", "drain", "--set"]
    words += [f"loader.address=file:{short / 'nowhere'}"]
    code, said = ended(words, short / "trainer", number, ready="metrics at", delay=2.0)
    assert code == 130, said


@pytest.mark.parametrize("number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in SIGNALS[::2])])
def test_a_prepare_that_is_ended_leaves_what_it_goes_on_from(short: Path, number: int) -> None:
    """SIGTERM left its worker processes to find out by themselves, and ended with 143."""
    write_photographs(short, "train", 400)
    words = ["prepare", str(short / "train"), str(short / "store"), "--size", str(SIZE), "--workers", "2"]
    command = Command(["-m", "fourstage", *words], short / "prepare")
    try:
        eventually(lambda: len(command.family()) > 2 or command.process.poll() is not None, "its workers")
        command.signal(number)
        assert command.end(60.0) == 130, command.said
        assert command.left() == []
    finally:
        command.kill()
    code, said = ended(words, short / "again")
    assert code == 0, said
    prepare(short / "train", short / "undisturbed", size=SIZE, workers=1)
    assert open_store(short / "store").fingerprint == open_store(short / "undisturbed").fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_an_evaluation_that_is_ended_leaves_nothing(world: World, short: Path, number: int) -> None:
    run_dir = world.folder / "undisturbed"
    words = ["evaluate", "--run-dir", str(run_dir), "--store", str(world.store), "--out", str(short / "out")]
    command = Command(["-m", "fourstage", *words], short / "evaluate")
    try:
        eventually(lambda: len(command.family()) > 1 or command.process.poll() is not None, "its augmenters", 60.0)
        command.signal(number)
        assert command.end(60.0) == 130, command.said
        assert command.left() == []
    finally:
        command.kill()


@pytest.mark.slow
def test_a_demo_that_is_ended_between_its_splits_makes_the_second(short: Path) -> None:
    """A store with the first split alone was taken for the whole: the demo then trained without validation."""
    store = short / "store"
    words = ["demo", "--only-store", "--store", str(store), "--json"]
    command = Command(["-m", "fourstage", *words], short / "demo")
    try:
        manifest = store / "store.json"
        eventually(lambda: manifest.is_file() or command.process.poll() is not None, "the first split", 120.0)
        command.signal(signal.SIGTERM)
        assert command.end(60.0) == 130, command.said
        assert command.left() == []
    finally:
        command.kill()
    assert set(open_store(store).splits) == {"train"}
    code, said = ended(words, short / "again")
    assert code == 0, said
    assert json.loads(said.splitlines()[-1])["splits"] == {"train": 4000, "val": 500}


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_demo_that_is_ended_while_it_draws_leaves_no_photographs(short: Path, number: int) -> None:
    """SIGTERM left /tmp/fourstage-photographs-…, with thousands of files."""
    words = ["demo", "--store", str(short / "store"), "--run-dir", str(short / "run")]
    code, said = ended(words, short / "demo", number, ready="drawing", delay=0.5)
    assert code == 130, said
    assert not (short / "run").exists()
