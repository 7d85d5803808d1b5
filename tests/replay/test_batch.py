"""``fourstage batch``: the batches that real runs trained on, made again; their pictures; what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fourstage.errors import FourstageError, SettingsError
from fourstage.replay.picture import Layout
from fourstage.replay.recorded import read_run
from fourstage.replay.remake import Remaker
from fourstage.replay.step import Again, make_again, shown_rows
from fourstage.replay.stores import store_of
from fourstage.store.prepare import prepare
from tests.pipeline.harness import CROP, SIZE, complete_run, fourstage, lines, write_photographs
from tests.replay.conftest import DRAIN, NETWORK, RunOf
from tests.streams import BATCH, BATCHES, Expected

LAST = 2 * BATCHES


def again(run_dir: Path, step: int, store: Path | None = None) -> Again:
    run = read_run(run_dir)
    with Remaker(run.settings, store_of(run, store)) as remaker:
        return make_again(run, remaker, step)


def crop_of(sheet: NDArray[np.uint8], number: int, layout: Layout) -> NDArray[np.uint8]:
    """A crop of a picture at its own size; fails unless it was enlarged by repeating pixels."""
    left, top = layout.corner(number)
    shown = sheet[top : top + layout.side, left : left + layout.side]
    times = layout.side // layout.crop
    small = shown[::times, ::times]
    assert np.array_equal(small.repeat(times, 0).repeat(times, 1), shown)
    return small


@pytest.mark.parametrize("arguments", [(*NETWORK, "--receipt", "pixels"), tuple(DRAIN)])
def test_every_batch_of_a_run_is_made_again(run_of: RunOf, store: Path, arguments: tuple[str, ...]) -> None:
    run_dir = run_of(*arguments)
    expected = Expected.of(store)
    recorded = [line["digest"] for line in lines(run_dir / "steps.jsonl")]
    assert len(recorded) == LAST
    for step in range(1, LAST + 1):
        made = again(run_dir, step)
        assert (made.verdict, made.digest) == ("matches", recorded[step - 1])
        epoch, number = divmod(step - 1, BATCHES)
        batch = expected.batch(number, epoch=epoch)
        draws = expected.draws(number * BATCH, len(batch["keys"]), epoch=epoch)
        assert [sample.key for sample in made.samples] == batch["keys"]
        assert [sample.label for sample in made.samples] == batch["labels"].tolist()
        assert [sample.position for sample in made.samples] == batch["positions"].tolist()
        assert [list(sample.offsets) for sample in made.samples] == draws.offsets.tolist()
        assert [sample.reflected for sample in made.samples] == draws.reflections.tolist()
        assert [list(sample.shift) for sample in made.samples] == draws.shifts.tolist()
        assert {sample.label_name for sample in made.samples} <= {"blot", "dash", "plus"}


@pytest.mark.parametrize("step", [BATCHES, BATCHES + 2])
def test_the_picture_shows_the_crops_with_their_shift(run_of: RunOf, store: Path, tmp_path: Path, step: int) -> None:
    run_dir = run_of(*NETWORK, "--receipt", "pixels")
    out = tmp_path / "deep" / "sheet.png"
    done = fourstage("batch", str(step), "--run-dir", str(run_dir), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["step"], told["verdict"], told["picture"]) == (step, "matches", str(out))
    epoch, number = divmod(step - 1, BATCHES)
    expected = Expected.of(store).batch(number, epoch=epoch)
    assert (told["epoch"], told["first_position"], told["rows"]) == (epoch, number * BATCH, len(expected["keys"]))
    assert [sample["key"] for sample in told["samples"]] == expected["keys"]
    assert any(any(sample["shift"]) for sample in told["samples"])
    with Image.open(out) as image:
        sheet = np.asarray(image)
    layout = Layout(len(expected["keys"]), CROP, 3)
    assert sheet.shape == (layout.size[1], layout.size[0], 3)
    for row, (sample, pixels) in enumerate(zip(told["samples"], expected["images"].numpy(), strict=True)):
        shifted = (pixels + np.array(sample["shift"], np.float32)).round().clip(0, 255)
        assert np.array_equal(crop_of(sheet, row, layout), shifted)
    # Nothing but white paper where a further crop would be.
    left, top = layout.corner(layout.count)
    assert (sheet[top : top + layout.side, left : left + layout.side] == 255).all()


def test_rows_of_a_batch_are_shown_page_by_page(run_of: RunOf, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(run_of(*DRAIN), run_dir)
    done = fourstage("batch", "2", "--run-dir", str(run_dir), "--rows", "5:6")
    assert done.returncode == 0, done.stderr
    assert "matches the receipt of the run (keys, labels, draws)" in done.stdout
    assert "8 samples, of which --rows" in done.stdout
    page = run_dir / "batches" / "step-000002-rows-5-6.png"
    assert str(page) in done.stdout
    fourstage("batch", "2", "--run-dir", str(run_dir))
    pictures = {}
    for path, count in ((page, 2), (run_dir / "batches" / "step-000002.png", 8)):
        with Image.open(path) as image:
            sheet, layout = np.asarray(image), Layout(count, CROP, 3)
            pictures[count] = [crop_of(sheet, number, layout) for number in range(count)]
    assert np.array_equal(pictures[2], pictures[8][5:7])


def test_a_step_still_to_come_is_made_beforehand_also_after_a_split_was_added(tmp_path: Path) -> None:
    write_photographs(tmp_path, "train", 5)
    write_photographs(tmp_path, "val", 2)
    store, short, long = (tmp_path / name for name in ("store", "short", "long"))
    prepare(tmp_path / "train", store, size=SIZE, workers=1)
    arguments = [*DRAIN, "--set", f"augmenter.crop={CROP}", "--set", "batch_size=4", "--augmenters", "1"]
    complete_run(store, short, *arguments, "--epochs", "2", "--max-steps", "3")
    assert again(short, 3).verdict == "matches"
    with pytest.raises(SettingsError, match=r"1 to 3$"):
        again(short, 4)
    complete_run(store, long, *arguments, "--epochs", "2")
    (short / "settings.toml").write_text((long / "settings.toml").read_text())
    prepare(tmp_path / "val", store, split="val", size=SIZE, workers=1)
    made = again(short, 8)
    assert (made.verdict, made.batch.place.rows) == ("not-recorded", 3)
    assert "not recorded step 8 yet" in made.words
    assert again(short, 3).verdict == again(long, 8).verdict == "matches"
    assert made.digest == again(long, 8).digest


@pytest.mark.slow
def test_a_batch_shared_by_two_trainers(run_of: RunOf) -> None:
    run_dir = run_of(*NETWORK, "--receipt", "pixels", "--parallel", "data")
    assert all(again(run_dir, step).verdict == "matches" for step in (1, BATCHES, LAST))
    alone = run_of(*NETWORK, "--receipt", "pixels")
    assert (run_dir / "samples.u32").read_bytes() == (alone / "samples.u32").read_bytes()


def test_another_record_is_a_failure_with_the_digests(run_of: RunOf, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(run_of(*DRAIN), run_dir)
    steps = run_dir / "steps.jsonl"
    recorded = lines(steps)[4]["digest"]
    other = ("0" if recorded[0] != "0" else "1") + recorded[1:]
    steps.write_text(steps.read_text().replace(recorded, other))
    done = fourstage("batch", "5", "--run-dir", str(run_dir), "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["verdict"], told["digest"], told["recorded_digest"]) == ("differs", recorded, other)
    assert "fourstage verify" in done.stderr
    assert again(run_dir, 4).verdict == "matches"


@pytest.mark.parametrize("step", [0, LAST + 1])
def test_a_step_outside_of_the_plan_is_refused_with_the_range(run_of: RunOf, step: int) -> None:
    with pytest.raises(SettingsError, match=rf"step {step} is not in the plan .* 1 to {LAST}$"):
        again(run_of(*DRAIN), step)


def test_wrong_rows_are_refused(run_of: RunOf, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    done = fourstage("batch", "1", "--run-dir", str(run_of(*DRAIN)), "--rows", "5:8", "--out", str(out))
    assert done.returncode == 2
    assert "'5:8'" in done.stderr
    assert "from 0 to 7" in done.stderr
    assert not out.exists()
    for text in ("3", "5:2", "a:b", "-1:2", ""):
        with pytest.raises(SettingsError, match="from 0 to 999"):
            shown_rows(text, 1000)
    with pytest.raises(SettingsError, match="at most 256"):
        shown_rows("0:256", 1000)
    assert (shown_rows("0:255", 1000), shown_rows(None, 1000), shown_rows(None, 5)) == (
        slice(0, 256), slice(0, 64), slice(0, 5),
    )  # fmt: skip


def test_settings_that_changed_since_are_refused(run_of: RunOf, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(run_of(*DRAIN), run_dir)
    settings = run_dir / "settings.toml"
    settings.write_text(settings.read_text().replace(f"batch_size = {BATCH}\n", "batch_size = 5\n"))
    with pytest.raises(FourstageError, match=f"batch_size = 5, its checkpoint of step {LAST} has {BATCH}"):
        again(run_dir, 3)


def test_another_store_is_refused_and_a_moved_one_can_be_named(run_of: RunOf, store: Path, tmp_path: Path) -> None:
    write_photographs(tmp_path, "train", 15, seed=1)
    other = tmp_path / "other"
    prepare(tmp_path / "train", other, size=SIZE, workers=1)
    moved = tmp_path / "moved"
    shutil.copytree(store, moved)
    run_dir = tmp_path / "run"
    shutil.copytree(run_of(*DRAIN), run_dir)
    (run_dir / "run.json").write_text(json.dumps({"store": str(tmp_path / "gone")}))
    with pytest.raises(SettingsError, match=r"was trained on the store .*--store"):
        again(run_dir, 1, other)
    with pytest.raises(FourstageError, match="gone"):
        again(run_dir, 1)
    assert again(run_dir, 1, moved).verdict == "matches"
    (run_dir / "run.json").unlink()
    with pytest.raises(SettingsError, match=r"does not say where its store is; give --store"):
        again(run_dir, 1)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no run"):
        again(tmp_path, 1)


def test_a_run_is_not_resumed_with_another_store(run_of: RunOf, tmp_path: Path) -> None:
    write_photographs(tmp_path, "train", 15, seed=1)
    prepare(tmp_path / "train", tmp_path / "other", size=SIZE, workers=1)
    run_dir = tmp_path / "run"
    shutil.copytree(run_of(*DRAIN), run_dir)
    before = (run_dir / "run.json").read_bytes()
    done = fourstage("run", "--store", str(tmp_path / "other"), "--run-dir", str(run_dir), "--resume")
    assert done.returncode == 2
    assert "was begun with the store" in done.stderr
    assert (run_dir / "run.json").read_bytes() == before
