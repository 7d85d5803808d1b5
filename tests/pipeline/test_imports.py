"""What each process of a run imports: every module costs every process of a run its start."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.harness import CROP, eventually

PERSONS = {"typer", "rich", "fourstage.cli"}
KEYS = {"asyncio", "zmq.auth", "fourstage.wire.gate"}
STAGES = {"loader": "fourstage.loader", "augmenter": "fourstage.augmenter", "trainer": "fourstage.trainer"}
_IMPORTED = re.compile(r"import time: +\d+ \| +\d+ \| +(\S+)")


def imported(text: str) -> list[str]:
    """The modules of ``-X importtime`` in the order in which their imports ended."""
    return _IMPORTED.findall(text)


def as_child(folder: Path, role: str, *arguments: str) -> str:
    """What a service wrote that was started as an engine starts it, and left alone once it had announced itself."""
    (folder / "settings.toml").write_text(f'batch_size = 8\n[model]\nname = "none"\n[augmenter]\ncrop = {CROP}\n')
    # Whoever is orphaned takes it away.
    sockets = folder / "sockets"
    sockets.mkdir()
    announced = sockets / f"{role}.json"
    address = {"FOURSTAGE_LOADER__ADDRESS": f"file:{sockets / 'address'}", "FOURSTAGE_SOCKETS": str(sockets)}
    command = [
        sys.executable, "-X", "importtime", "-m", "fourstage", role, *arguments,
        "--settings", str(folder / "settings.toml"), "--announce", str(announced), "--lifeline",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, env={**os.environ, **address})
    eventually(lambda: announced.is_file() or process.poll() is not None, f"the {role} is up")
    was_up = announced.is_file()
    process.communicate(timeout=60)
    text = (folder / "log").read_text()
    assert was_up, text
    return text


def arguments_of(role: str, store: Path, folder: Path) -> list[str]:
    flags = {"loader": ["--store", str(store)], "augmenter": ["--name", "a"], "trainer": ["--run-dir", str(folder)]}
    return flags[role]


@pytest.mark.parametrize("role", ["loader", "augmenter"])
def test_a_service_imports_no_torch_no_command_line_no_keys_and_no_other_stage(
    store: Path, tmp_path: Path, role: str
) -> None:
    modules = set(imported(as_child(tmp_path, role, *arguments_of(role, store, tmp_path))))
    assert f"{STAGES[role]}.service" in modules
    others = {name for name in modules for other in STAGES if other != role and name.startswith(STAGES[other])}
    assert modules & ({"torch"} | PERSONS | KEYS) == set()
    assert others == set()


def test_a_trainer_imports_torch_and_no_command_line_no_keys_and_no_other_stage(store: Path, tmp_path: Path) -> None:
    modules = set(imported(as_child(tmp_path, "trainer", *arguments_of("trainer", store, tmp_path))))
    assert {"torch", "fourstage.trainer.service"} <= modules
    assert modules & (PERSONS | (KEYS - {"asyncio"}) | {"cv2"}) == set(), "torch itself brings asyncio along"
    assert [name for name in modules if name.startswith((STAGES["loader"], STAGES["augmenter"]))] == []


def test_the_run_command_imports_neither_torch_nor_a_stage_nor_metrics() -> None:
    modules = modules_of_command("run", "--help")
    assert "fourstage.cli.runs" in modules
    assert modules & {"torch", "cv2", "prometheus_client", *KEYS} == set()
    assert [name for name in modules for stage in STAGES.values() if name.startswith(stage)] == []


def test_a_command_imports_what_it_needs_and_no_other_command() -> None:
    modules = modules_of_command("keys", "--help")
    assert {name for name in modules if name.startswith("fourstage.cli.")} == {
        "fourstage.cli.commands",
        "fourstage.cli.keys",
    }
    assert modules & {"numpy", "zmq"} == set()


def modules_of_command(*arguments: str) -> set[str]:
    program = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        "from fourstage.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stderr.split())
