"""The commands as a shell sees them: exit codes, one JSON object, one line of error."""

import json
import subprocess
import sys
from pathlib import Path

from fourstage import __version__
from tests.pipeline.harness import SIZE, fourstage, write_photographs


def test_prepare_verify_and_a_further_split(tmp_path: Path) -> None:
    write_photographs(tmp_path, "train", 4)
    write_photographs(tmp_path, "val", 2)
    (tmp_path / "train" / "plus" / "no.jpg").write_bytes(b"not a picture")
    store = tmp_path / "store"
    made = fourstage("prepare", str(tmp_path / "train"), str(store), "--size", str(SIZE), "--workers", "1", "--json")
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    assert (report["images"], report["left_out"], report["classes"]) == (12, 1, 3)
    assert "no.jpg" in (store / "left-out.jsonl").read_text()
    told = fourstage("prepare", str(tmp_path / "val"), str(store), "--split", "val", "--size", str(SIZE))
    assert told.returncode == 0, told.stderr
    assert "6 images of 3 classes" in told.stdout
    verified = fourstage("verify", str(store), "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["images"] == 18


def test_verify_names_the_altered_sample_and_fails(tmp_path: Path) -> None:
    write_photographs(tmp_path, "train", 2)
    store = tmp_path / "store"
    assert fourstage("prepare", str(tmp_path / "train"), str(store), "--size", str(SIZE)).returncode == 0
    shard = store / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    done = fourstage("verify", str(store))
    assert done.returncode == 1
    assert "blot" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("fourstage: ")


def test_version_help_and_usage() -> None:
    assert fourstage("--version").stdout.split() == ["fourstage", __version__]
    text = fourstage("--help").stdout
    for command in ("prepare", "verify", "run", "demo", "status", "loader", "augmenter", "trainer"):
        assert command in text
    done = fourstage("prepare")
    assert done.returncode == 2
    assert "'source'" in done.stderr
    assert "prepare --help" in done.stderr


def test_status_of_no_run_says_so(tmp_path: Path) -> None:
    done = fourstage("status", "--run-dir", str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path / "status.json") in done.stderr


def test_an_end_amid_the_making_of_a_dataclass_had_another_exit_code(tmp_path: Path) -> None:
    """Dataclasses are made of strings, and while modules are imported there are hundreds of them to be made. Only a
    module that is run by its name (-m) shows it: any other program is itself code that clears CPython's mark."""
    (tmp_path / "ended.py").write_text("""
from fourstage import cli

def run(_):
    exec("import os, signal\\nos.kill(os.getpid(), signal.SIGTERM)\\nwhile True: pass")

cli._run = run
cli.main()
""")
    done = subprocess.run(
        [sys.executable, "-m", "ended"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (130, "")
