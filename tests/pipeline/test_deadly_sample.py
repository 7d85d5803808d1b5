"""A stored image that kills every process that decodes it: it is found, named, and left out where that is allowed."""

import json
import os
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.harness import CROP, lines, start_run

RUN = (
    "--recipe", "drain", "--set", "batch_size=8", "--set", f"augmenter.crop={CROP}", "--epochs", "1",
    "--receipt", "pixels",
)  # fmt: skip
PATCH = """
import os, signal, zlib
from fourstage.augmenter import decode as module

make = module.make_decoder

def make_deadly(name):
    decode = make(name)
    def decode_or_die(jpeg, pixels):
        if zlib.crc32(jpeg) == {deadly}:
            os.kill(os.getpid(), signal.SIGKILL)
        decode(jpeg, pixels)
    return decode_or_die

module.make_decoder = make_deadly
"""
"""Taken up by every process of the run as its sitecustomize."""


@pytest.fixture
def deadly(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of the sample."""
    with tarfile.open(sorted(store.glob("train-*.tar"))[0]) as shard:
        member = [member for member in shard if member.name.endswith(".jpg")][17]
        file = shard.extractfile(member)
        assert file is not None
        deadly = zlib.crc32(file.read())
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(PATCH.format(deadly=deadly))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "patch"), str(Path.cwd())]))
    return member.name.removesuffix(".jpg")


def run(store: Path, run_dir: Path, augmenters: int, *more: str) -> tuple[int, dict[str, Any], str]:
    code, out, error = start_run(store, run_dir, *RUN, "--augmenters", str(augmenters), *more).finish()
    return code, json.loads(out) if out else {}, error


def test_a_sample_that_kills_its_workers_ends_the_run_by_its_name(store: Path, tmp_path: Path, deadly: str) -> None:
    code, _, error = run(store, tmp_path / "run", 2)
    assert code == 1
    said = [line for line in error.splitlines() if line.startswith("fourstage: ")]
    assert len(said) == 1, error
    assert repr(deadly) in said[0]
    assert "kills every worker that decodes it" in said[0]


@pytest.mark.slow
def test_a_sample_that_kills_its_workers_is_left_out_the_same_by_any_number_of_them(
    store: Path, tmp_path: Path, deadly: str
) -> None:
    digests = []
    for augmenters in (1, 3):
        run_dir = tmp_path / f"run-{augmenters}"
        code, summary, error = run(store, run_dir, augmenters, "--set", "on_corrupt=skip")
        assert code == 0, error
        assert summary["receipt"]["corrupt"] == 1
        assert lines(run_dir / "receipt.jsonl")[0]["corrupt"] == [deadly]
        digests.append(summary["receipt"]["digest"])
    assert digests[0] == digests[1]
