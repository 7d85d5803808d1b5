"""What lies in ``checkpoints/`` and is not what was written is passed over with words, for an older one."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from fourstage.trainer.rates import NOTHING
from fourstage.trainer.saved import read
from tests.checkpoints.attempts import OLD, begin
from tests.checkpoints.written import found, leftovers, write

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def edit(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    document = json.loads((path / STATE).read_text())
    change(document)
    (path / STATE).write_text(json.dumps(document))


def empty(path: Path) -> None:
    (path / MODEL).write_bytes(b"")


def empty_state(path: Path) -> None:
    (path / STATE).write_bytes(b"")


def lose_every_file(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def fill_with_zeros(path: Path) -> None:
    for file in path.iterdir():
        file.write_bytes(bytes(file.stat().st_size))


def swap_files(path: Path) -> None:
    (path / MODEL).rename(path / "other")
    (path / OPTIMIZER).rename(path / MODEL)
    (path / "other").rename(path / OPTIMIZER)


def take_another_ones_model(path: Path) -> None:
    (path / MODEL).write_bytes((path.with_name("step-00000001") / MODEL).read_bytes())


def take_another_ones_state(path: Path) -> None:
    (path / STATE).write_bytes((path.with_name("step-00000001") / STATE).read_bytes())


def state_of_another_kind(**fields: object) -> Callable[[Path], None]:
    """Fields that no trainer writes, in a document whose digests fit."""

    def damage(path: Path) -> None:
        document = json.loads((path / STATE).read_text())
        document["state"].update(fields)
        body = {name: document[name] for name in ("state", "files")}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        (path / STATE).write_text(json.dumps(document | {"xxh3_128": xxhash.xxh3_128_hexdigest(text.encode())}))

    return damage


def be_another_one(path: Path) -> None:
    for name in (MODEL, OPTIMIZER, STATE):
        (path / name).write_bytes((path.with_name("step-00000001") / name).read_bytes())


def go_on_from_elsewhere(path: Path) -> None:
    def change(document: dict[str, object]) -> None:
        state = document["state"]
        assert isinstance(state, dict)
        state["next_seq"] = 1

    edit(path, change)


def name_other_files(path: Path) -> None:
    edit(path, lambda document: document.update(files={"/etc/passwd": {"bytes": 1, "xxh3_128": ""}}))


def nest_deeply(path: Path) -> None:
    (path / STATE).write_text('{"a":' * 100_000)


def be_no_object(path: Path) -> None:
    (path / STATE).write_text("[1]")


def be_a_folder(path: Path) -> None:
    (path / MODEL).unlink()
    (path / MODEL).mkdir()


def have_a_fifo_for_a_state(path: Path) -> None:
    (path / STATE).unlink()
    os.mkfifo(path / STATE)


def be_a_fifo(path: Path) -> None:
    (path / MODEL).unlink()
    os.mkfifo(path / MODEL)


def be_a_file(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    path.write_text("")


def be_unreadable_text(path: Path) -> None:
    (path / STATE).write_bytes(b"\xff\xfe\x00\xd8")


DAMAGES = [
    empty, empty_state, lose_every_file, fill_with_zeros, swap_files, take_another_ones_model, take_another_ones_state,
    be_another_one, go_on_from_elsewhere, name_other_files, nest_deeply, be_no_object, be_a_folder, be_a_fifo,
    have_a_fifo_for_a_state,
    be_a_file, be_unreadable_text,
]  # fmt: skip
OF_ANOTHER_KIND: list[dict[str, object]] = [
    {"unvalidated": [{"x": 1}]}, {"unvalidated": [None, None]}, {"unvalidated": [3]}, {"identity": "zz"},
    {"identity": "abc"}, {"identity": 33 * "ab"}, {"store_fingerprint": 1025 * "a"}, {"next_seq": 2**53 + 1},
    {"epoch": -1}, {"trained": [1.0, 2.0]}, {"trained": [-1.0, 0.0, 0.0, 0.0]}, {"trained": ["x", 0.0, 0.0, 0.0]},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_older_one_is_taken_and_the_log_names_what_was_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    run = begin(tmp_path)
    damage(write(run, 2))
    with caplog.at_level(logging.WARNING):
        assert found(run) == OLD
    assert "passed over" in caplog.text
    assert "step-00000002" in caplog.text
    caplog.clear()
    write(run, 3)
    assert found(run) == "step 3"
    assert "passed over" not in caplog.text
    assert len(list((run / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("fields", OF_ANOTHER_KIND, ids=str)
def test_a_state_whose_digest_fits_and_that_no_trainer_writes_is_passed_over(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    run = begin(tmp_path)
    state_of_another_kind(**fields)(write(run, 2))
    assert found(run) == OLD


def test_a_state_from_before_an_epochs_sums_were_kept_is_read_as_one_that_has_none(tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    document = json.loads((path / STATE).read_text())
    del document["state"]["trained"]
    (path / STATE).write_text(json.dumps(document))
    state_of_another_kind()(path)
    assert found(tmp_path) == "step 2"
    assert read(path).state.trained == NOTHING


@pytest.mark.parametrize("damage", [empty, lose_every_file, go_on_from_elsewhere])
def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_not_begun_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(write(tmp_path, 2))
    assert found(tmp_path).startswith("refused: no checkpoint in")
    assert "step-00000002" in found(tmp_path)


def test_what_lies_there_besides_changes_nothing(tmp_path: Path) -> None:
    run = begin(tmp_path)
    folder = run / "checkpoints"
    (folder / "step-00000009.bak").mkdir()
    (folder / "step-x").write_text("")
    (folder / "notes.txt").write_text("")
    (folder / ".partial-step-00000009").write_text("")
    assert found(run) == OLD
    write(run, 2, keep=1)
    assert leftovers(run) == ["notes.txt"]
    assert (folder / "step-00000009.bak").is_dir()
