"""Runs and workers with the decoder ``dali``, as processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fourstage.trainer.feed import Feed
from tests.pipeline.harness import CROP, complete_run, eventually, services
from tests.pipeline.test_frozen_worker import request

DALI = "augmenter.decoder=dali"


@pytest.fixture
def installed() -> None:
    pytest.importorskip("nvidia.dali", reason="the extra dali is not installed")


def drained(store: Path, run_dir: Path, *arguments: str) -> dict[str, Any]:
    summary = complete_run(
        store, run_dir, "--recipe", "drain", "--receipt", "pixels", "--epochs", "2", "--seed", "5",
        "--set", f"augmenter.crop={CROP}", "--set", "batch_size=48", *arguments,
    )  # fmt: skip
    receipt: dict[str, Any] = summary["receipt"]
    return receipt


@pytest.mark.usefixtures("installed")
def test_one_worker_and_two_make_the_same_pixels_and_those_of_the_default(store: Path, tmp_path: Path) -> None:
    one = drained(store, tmp_path / "one", "--set", DALI, "--augmenters", "1")
    two = drained(store, tmp_path / "two", "--set", DALI, "--augmenters", "2")
    default = drained(store, tmp_path / "default", "--augmenters", "1")
    assert one["delivered"] == two["delivered"] == 480
    assert one["digest"] == two["digest"] == default["digest"]
    assert "decoder dali" in (tmp_path / "two" / "logs" / "augmenter-1.log").read_text()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("first", "second"), [("dali", "simplejpeg"), ("simplejpeg", "dali")])
def test_workers_of_two_decoders_do_not_share_a_stream(store: Path, tmp_path: Path, first: str, second: str) -> None:
    with services(store, tmp_path, 1, [f"augmenter.decoder={first}"]) as running:
        feed = Feed(running.address, name="test", sockets=tmp_path)
        try:
            inbox = feed.open(request("train", epochs=1000))
            inbox.opened(20.0)
            batch = inbox.next(20.0)
            assert batch is not None
            source = batch.source

            running.settings = [f"augmenter.decoder={second}"]
            running.start_augmenter("second")
            refused = "gets no lease: it makes other pixels"
            eventually(lambda: refused in (tmp_path / "loader.log").read_text(), "the loader's reason")
            told = "this worker makes other pixels"
            eventually(lambda: told in (tmp_path / "second.log").read_text(), "the worker's reason")
            for _ in range(60):
                batch.release()
                inbox.train_on(batch.seq)
                batch = inbox.next(20.0)
                assert batch is not None
                assert batch.source == source

            running.kill("augmenter-0")
            words = "no augmenter makes the pixels of this run"
            eventually(lambda: feed.stages is not None and words in feed.stages.waiting, "the reason of the wait")
        finally:
            feed.close()


def test_without_dali_the_worker_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "fourstage", "augmenter", "--set", DALI, "--set", "loader.address=tcp://127.0.0.1:9"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("fourstage: ")]
    assert done.returncode == 2
    assert len(said) == 1
    assert 'augmenter.decoder = "dali"' in said[0]
    assert "pip install 'fourstage[dali]'" in said[0]
    assert "Traceback" not in done.stderr
