"""What cannot work is refused: exit 1 or 2, one line that says what and what to do, nothing half-written."""

import dataclasses
import json
import shutil
import socket
from pathlib import Path

import pytest

from fourstage.store import open_store
from fourstage.trainer.feed import Feed
from tests.pipeline.harness import CROP, eventually, fourstage, services, start_run
from tests.pipeline.test_frozen_worker import request

SMALL = ["--set", f"augmenter.crop={CROP}", "--set", "batch_size=16"]


def refuse(code: int, *words: str, command: tuple[str, ...]) -> None:
    """The command ends with ``code`` and one line on standard error that holds all ``words``."""
    done = fourstage(*command)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if line.startswith("fourstage: ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in said[0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("batch_size=0", ("batch_size = 0", "greater than or equal to 1")),
        ("batch_sizes=3", ("'batch_sizes'", "batch_size")),
        ("augmenter.crop=999", ("augmenter.crop = 999", "40x40")),
        ("train.device=tpu", ("train.device = 'tpu'",)),
        ("train.step_seconds=1", ("train.step_seconds", 'model.name = "none"')),
        ("nonsense", ("key=value", "'nonsense'")),
    ],
)
def test_a_wrong_setting(store: Path, tmp_path: Path, setting: str, words: tuple[str, ...]) -> None:
    run_dir = tmp_path / "run"
    command = ("run", "--store", str(store), "--recipe", "cifar-augmented", "--run-dir", str(run_dir), "--set", setting)
    refuse(2, *words, command=command)
    assert not run_dir.exists()


def test_an_unknown_recipe_and_an_unknown_option(store: Path, tmp_path: Path) -> None:
    base = ("run", "--store", str(store), "--run-dir", str(tmp_path / "run"))
    refuse(2, "'resnet'", "alexnet", command=(*base, "--recipe", "resnet"))
    refuse(2, "--recipes", command=(*base, "--recipes", "alexnet"))
    refuse(2, "'many'", "auto", command=(*base, "--augmenters", "many"))
    assert not (tmp_path / "run").exists()


def test_a_missing_store(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    refuse(1, str(tmp_path / "none"), command=("run", "--store", str(tmp_path / "none"), "--run-dir", str(run_dir)))
    assert not run_dir.exists()


def test_a_store_of_another_version(store: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(store, foreign)
    manifest = json.loads((foreign / "store.json").read_text())
    version = next(key for key in manifest if "version" in key or "format" in key)
    manifest[version] = 99
    (foreign / "store.json").write_text(json.dumps(manifest))
    refuse(1, "99", command=("run", "--store", str(foreign), "--run-dir", str(tmp_path / "run"), *SMALL))
    assert not (tmp_path / "run").exists()


def test_a_port_in_use(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        refuse(2, address, "in use", command=("loader", "--store", str(store), "--set", f"loader.address={address}"))


def test_a_read_only_run_directory(store: Path) -> None:
    # /proc takes no directories from anybody, not even from root.
    run_dir = Path("/proc/fourstage-run")
    refuse(2, str(run_dir), command=("run", "--store", str(store), "--run-dir", str(run_dir), *SMALL))


@pytest.mark.parametrize("stage", ["loader", "augmenter"])
def test_a_memory_limit_too_small_for_one_slot(store: Path, tmp_path: Path, stage: str) -> None:
    run = start_run(
        store,
        tmp_path / "run",
        "--recipe",
        "cifar-augmented",
        *SMALL,
        "--set",
        f"{stage}.memory=4000",
        "--augmenters",
        "1",
    )
    code, out, error = run.finish(60)
    assert code == 1
    assert out == ""
    said = [line for line in error.splitlines() if line.startswith("fourstage: ")]
    assert len(said) == 1, error
    assert f"{stage}.memory = 4000" in said[0]
    assert "lower batch_size" in said[0]
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_directory_that_already_holds_a_run(store: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("")
    refuse(
        2,
        "--resume",
        command=("run", "--store", str(store), "--run-dir", str(tmp_path), "--recipe", "cifar-augmented", *SMALL),
    )
    refuse(
        2,
        "no run to resume",
        command=("run", "--store", str(store), "--run-dir", str(tmp_path / "x"), "--resume", *SMALL),
    )


def test_an_altered_sample_ends_the_run_by_its_name(store: Path, tmp_path: Path) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(store, altered)
    shard = altered / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[int(open_store(store).split("train").records["offset"][7]) + 300] ^= 0xFF
    shard.write_bytes(data)
    run = start_run(altered, tmp_path / "run", "--recipe", "cifar-augmented", *SMALL)
    code, _, error = run.finish(60)
    assert code == 1
    assert "was altered" in error
    assert "fourstage verify" in error


def test_a_worker_with_other_pixels_gets_no_lease(store: Path, tmp_path: Path) -> None:
    with services(store, tmp_path, 1) as running:
        feed = Feed(running.address, name="test", sockets=tmp_path)
        try:
            inbox = feed.open(dataclasses.replace(request("train", epochs=1), identity=b"another decoder!"))
            inbox.opened(20.0)
            words = "no augmenter makes the pixels of this run"
            eventually(lambda: feed.stages is not None and words in feed.stages.waiting, "the reason")
            assert inbox.next(0.5) is None
        finally:
            feed.close()
    assert "makes other pixels" in (tmp_path / "loader.log").read_text()
