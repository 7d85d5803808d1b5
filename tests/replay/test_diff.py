"""``fourstage receipt diff``: where two runs part, in what, and what is said where not everything is known."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage import rundir
from fourstage.errors import SettingsError
from fourstage.order import BatchPlan
from fourstage.replay.compare import first_difference, first_row
from fourstage.replay.diff import diff as compare_runs
from fourstage.replay.recorded import BATCH_SETTINGS, Recorded, Step, read_run
from fourstage.replay.remake import Remaker, digest_of
from fourstage.replay.stores import store_of
from fourstage.replay.written import comparison_document
from fourstage.resolve import load_settings, write_settings
from fourstage.store.prepare import prepare
from fourstage.trainer.receipt import DIGEST_BYTES, batch_digest, short_digests
from fourstage.trainer.resume import PINNED
from fourstage.views import view_of
from tests.pipeline.harness import SIZE, fourstage, lines, start_run, write_photographs
from tests.replay.conftest import DRAIN, NETWORK, RunOf
from tests.streams import BATCH, BATCHES, SAMPLES, Expected

STEPS = 2 * BATCHES
PIXELS = [*DRAIN, "--receipt", "pixels"]


def diff(a: Path, b: Path, *stores: Path) -> dict[str, Any]:
    """What ``fourstage receipt diff --json`` prints."""
    told: dict[str, Any] = json.loads(json.dumps(comparison_document(compare_runs(a, b, stores))))
    assert (told["first"] is None) == told["equal"]
    return told


def copied(run_dir: Path, path: Path) -> Path:
    shutil.copytree(run_dir, path)
    return path


def as_if(run_dir: Path, path: Path, *, flags: dict[str, Any]) -> Path:
    """The directory of a run with other settings, as its trainer would have written it: no checkpoint, no pixels."""
    settings = load_settings(str(run_dir / "settings.toml"), environment={}, flags=flags)
    path.mkdir()
    (path / "settings.toml").write_text(write_settings(settings))
    shutil.copy(run_dir / "run.json", path)
    with Remaker(settings, store_of(read_run(run_dir), None)) as remaker:
        batches = [remaker.batch(step) for step in range(1, remaker.steps + 1)]
        told = [
            {
                "step": batch.seq + 1,
                "epoch": batch.place.epoch,
                "digest": digest_of(batch, remaker.samples(batch, "keys")),
            }
            for batch in batches
        ]
    (path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    return path


def set_digest(run_dir: Path, step: int, digest: str) -> None:
    """Write another digest into a line of steps.jsonl."""
    told = lines(run_dir / "steps.jsonl")
    told[step - 1]["digest"] = digest
    (run_dir / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))


def alter_pixels(run_dir: Path, step: int, row: int) -> str:
    """Let a run have recorded other pixels of one sample; its key."""
    run = read_run(run_dir)
    with Remaker(run.settings, store_of(run, None)) as remaker:
        batch = remaker.batch(step)
        samples = bytearray(remaker.samples(batch, "pixels"))
    assert digest_of(batch, bytes(samples)) == run.steps[step].digest
    samples[DIGEST_BYTES * row] ^= 1
    set_digest(run_dir, step, batch_digest(step - 1, bytes(samples)).hex())
    if (run_dir / "samples.u32").is_file():
        kept = np.fromfile(run_dir / "samples.u32", "<u4")
        _, before = run.place(step)
        kept[before : before + len(batch.keys)] = np.frombuffer(short_digests(bytes(samples)), "<u4")
        kept.tofile(run_dir / "samples.u32")
    return batch.keys[row]


def test_runs_of_one_and_three_augmenters_are_equal(run_of: RunOf) -> None:
    a, b = run_of(*PIXELS), run_of(*PIXELS, "--augmenters", "3")
    done = fourstage("receipt", "diff", str(a), str(b), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == diff(a, b)
    assert (told["common_steps"], told["longer"], told["settings"], told["notes"]) == (STEPS, None, [], [])


def test_another_seed_is_another_order_from_the_first_sample_on(run_of: RunOf, store: Path) -> None:
    told = diff(run_of(*DRAIN), run_of(*DRAIN, "--seed", "8"))
    assert told["settings"] == [{"name": "seed", "a": 5, "b": 8}]
    first = told["first"]
    expected = Expected.of(store)
    keys = [expected.batch(0, seed=seed)["keys"] for seed in (5, 8)]
    row = next(row for row in range(BATCH) if keys[0][row] != keys[1][row])
    assert (first["step"], first["row"], first["position"]) == (1, 0, 0)
    assert "draws" in first["what"]
    assert ("order" in first["what"]) == (row == 0)
    for side, of, seed in zip(first["sides"], keys, (5, 8), strict=True):
        assert side["sample"]["key"] == of[0]
        assert side["sample"]["offsets"] == expected.draws(0, 1, seed=seed).offsets[0].tolist()
        assert side["made_again"] is True


def test_another_colour_shift_is_another_draw_of_the_same_sample(run_of: RunOf, tmp_path: Path) -> None:
    a = run_of(*DRAIN)
    b = as_if(a, tmp_path / "b", flags={"colour_std": 0.2})
    told = diff(a, b)
    assert told["settings"] == [{"name": "colour_std", "a": 0.1, "b": 0.2}]
    first = told["first"]
    assert (first["step"], first["row"], first["what"], first["differing"]) == (1, 0, ["draws"], BATCH)
    mine, theirs = (side["sample"] for side in first["sides"])
    assert theirs["shift"] == pytest.approx([2 * value for value in mine["shift"]])
    assert mine | {"shift": 0} == theirs | {"shift": 0}
    said = fourstage("receipt", "diff", str(a), str(b))
    assert said.returncode == 1
    assert said.stdout.index("colour_std") < said.stdout.index(mine["key"])
    assert "step 1, epoch 0, row 0, position 0: draws" in said.stdout


def test_another_batch_size_parts_behind_the_last_common_row(run_of: RunOf, tmp_path: Path) -> None:
    told = diff(run_of(*DRAIN), as_if(run_of(*DRAIN), tmp_path / "b", flags={"batch_size": 11}))
    first = told["first"]
    assert told["longer"] == "a"
    assert told["common_steps"] == 2 * -(-SAMPLES // 11)
    assert (first["step"], first["what"], first["row"], first["differing"]) == (1, ["batch size"], BATCH, 3)
    assert [side["rows"] for side in first["sides"]] == [BATCH, 11]
    assert first["sides"][0]["sample"] is None
    assert first["sides"][1]["sample"]["position"] == BATCH


def test_a_longer_run_is_equal_over_the_common_steps(run_of: RunOf) -> None:
    short, long = run_of(*DRAIN), run_of(*DRAIN, "--epochs", "3")
    told = diff(short, long)
    assert told["equal"]
    assert (told["longer"], told["common_steps"], told["steps"]) == ("b", STEPS, [STEPS, 3 * BATCHES])
    assert told["settings"] == [{"name": "train.epochs", "a": 2, "b": 3}]
    done = fourstage("receipt", "diff", str(long), str(short))
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    assert last == f"equal over {STEPS} common steps, every key, label and draw; A is longer: 18 and 12 steps"


def test_a_digest_that_nothing_makes_names_the_run_that_recorded_it(run_of: RunOf, tmp_path: Path) -> None:
    sound = run_of(*DRAIN)
    altered = copied(sound, tmp_path / "altered")
    digest = lines(sound / "steps.jsonl")[6]["digest"]
    set_digest(altered, 7, digest[:-1] + ("0" if digest[-1] != "0" else "1"))
    told = diff(sound, altered)
    first = told["first"]
    assert (first["step"], first["row"], first["what"]) == (7, None, [])
    assert [side["epoch"] for side in first["sides"]] == [1, 1]
    assert [side["made_again"] for side in first["sides"]] == [True, False]
    assert any(str(altered) in note and "step 7" in note for note in told["notes"])
    assert not any(str(sound) in note for note in told["notes"])
    assert "cannot be named" in told["notes"][-1]


@pytest.mark.parametrize(("step", "row"), [(1, 0), (BATCHES, 4), (BATCHES + 3, 6)])
@pytest.mark.parametrize("kept", ["both", "the altered one", "none"])
def test_other_pixels_of_one_sample_are_named(run_of: RunOf, tmp_path: Path, step: int, row: int, kept: str) -> None:
    sound, altered = copied(run_of(*PIXELS), tmp_path / "sound"), copied(run_of(*PIXELS), tmp_path / "altered")
    key = alter_pixels(altered, step, row)
    for run_dir in {"both": [], "the altered one": [sound], "none": [sound, altered]}[kept]:
        (run_dir / "samples.u32").unlink()
    told = diff(sound, altered)
    first = told["first"]
    assert (first["step"], told["settings"]) == (step, [])
    assert [side["made_again"] for side in first["sides"]] == [True, False]
    if kept == "none":
        assert (first["row"], first["what"]) == (None, [])
        assert "samples.u32" in told["notes"][-1]
        return
    assert (first["row"], first["what"], first["differing"]) == (row, ["pixels"], 1)
    assert first["position"] == (step - 1) % BATCHES * BATCH + row
    assert {side["sample"]["key"] for side in first["sides"]} == {key}
    assert first["sides"][1]["sample_made_again"] is False
    assert first["sides"][0]["sample_made_again"] is (True if kept == "both" else None)


def test_without_a_store_the_step_is_known_and_for_pixels_the_row(run_of: RunOf, store: Path, tmp_path: Path) -> None:
    sound, altered = copied(run_of(*PIXELS), tmp_path / "sound"), copied(run_of(*PIXELS), tmp_path / "altered")
    key = alter_pixels(altered, BATCHES + 2, 3)
    for run_dir in (sound, altered):
        (run_dir / "run.json").write_text(json.dumps({"store": str(tmp_path / "gone")}))
    told = diff(sound, altered)
    first = told["first"]
    assert (first["step"], first["row"], first["position"], first["what"]) == (BATCHES + 2, 3, BATCH + 3, [])
    assert [side["sample"] for side in first["sides"]] == [None, None]
    assert sum("gone" in note for note in told["notes"]) == 2
    assert "--store" in told["notes"][-1]
    named = diff(sound, altered, store)["first"]
    assert (named["what"], named["sides"][0]["sample"]["key"]) == (["pixels"], key)
    keys, others = copied(run_of(*DRAIN), tmp_path / "keys"), copied(run_of(*DRAIN, "--seed", "8"), tmp_path / "others")
    for run_dir in (keys, others):
        (run_dir / "run.json").unlink()
    told = diff(keys, others)
    assert (told["first"]["step"], told["first"]["row"]) == (1, None)
    assert told["settings"][0]["name"] == "seed"
    assert "naming the sample needs the store" in told["notes"][-1]


@pytest.mark.slow
def test_runs_of_two_stores(run_of: RunOf, store: Path, tmp_path: Path) -> None:
    write_photographs(tmp_path, "train", 16)
    other = tmp_path / "other"
    prepare(tmp_path / "train", other, size=SIZE, workers=1)
    mine, theirs = run_of(*DRAIN), tmp_path / "theirs"
    arguments = ["--seed", "5", "--epochs", "2", "--set", "augmenter.crop=32", "--set", f"batch_size={BATCH}"]
    code, _, error = start_run(other, theirs, *DRAIN, *arguments).finish()
    assert code == 0, error
    told = diff(mine, theirs)
    assert [entry["name"] for entry in told["settings"]] == ["store"]
    # Other images have other principal components of colour.
    assert told["first"]["what"] == ["order", "draws"]
    assert diff(mine, theirs, other, store) == told
    with pytest.raises(SettingsError, match=r"theirs was trained on the store .*--store"):
        diff(mine, theirs, store)


def test_what_cannot_be_compared_is_wrong_usage(run_of: RunOf, tmp_path: Path) -> None:
    done = fourstage("receipt", "diff", str(run_of(*DRAIN)), str(run_of(*PIXELS)), "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "covers keys" in done.stderr
    with pytest.raises(SettingsError, match="holds no run"):
        diff(run_of(*DRAIN), tmp_path)
    empty = copied(run_of(*DRAIN), tmp_path / "empty")
    (empty / "steps.jsonl").unlink()
    with pytest.raises(SettingsError, match="no step yet"):
        diff(run_of(*DRAIN), empty)


@pytest.mark.slow
def test_the_digests_of_samples_survive_a_killed_trainer(store: Path, run_of: RunOf, tmp_path: Path) -> None:
    arguments = (*NETWORK, "--receipt", "pixels")
    undisturbed, run_dir = run_of(*arguments), tmp_path / "run"
    run = start_run(
        store, run_dir, *arguments, "--seed", "5", "--epochs", "2", "--augmenters", "1", "--set", "augmenter.crop=32",
        "--set", f"batch_size={BATCH}", "--set", "train.checkpoint_seconds=0.2", "--set", "augmenter.batch_seconds=0.2",
    )  # fmt: skip
    run.reach(5)
    run.kill("trainer")
    code, _, error = run.finish()
    assert code == 0, error
    kept = (run_dir / "samples.u32").read_bytes()
    assert len(kept) == 4 * 2 * SAMPLES
    assert kept == (undisturbed / "samples.u32").read_bytes()
    assert diff(undisturbed, run_dir)["equal"]


def test_a_receipt_of_keys_keeps_no_digests_of_samples(run_of: RunOf) -> None:
    assert not (run_of(*DRAIN) / "samples.u32").exists()


def test_every_setting_that_a_view_depends_on_is_compared() -> None:
    plain = load_settings("alexnet", environment={})
    other = {
        "augment": False, "augmenter.crop": 200, "colour_std": 0.2, "colour_scale": "deviations", "colour_epochs": 3,
        "crop_positions": "inclusive", "crop_chunk": 32,
    }  # fmt: skip
    for name, value in other.items():
        changed = load_settings("alexnet", environment={}, flags={name: value})
        assert view_of(changed, "random") != view_of(plain, "random")
        assert name in BATCH_SETTINGS
    assert len(other) == len(dataclasses.fields(view_of(plain, "random"))), "a view has a field that is not compared"
    assert set(BATCH_SETTINGS) <= set(PINNED)


digests = st.dictionaries(st.integers(1, 30), st.sampled_from("ab").map(lambda text: Step(0, text)))


@given(digests, digests)
def test_the_first_difference_is_the_lowest_common_step_that_differs(a: dict[int, Step], b: dict[int, Step]) -> None:
    common, step = first_difference(a, b)
    different = [number for number in range(1, 31) if number in a and number in b and a[number] != b[number]]
    assert common == len(set(a) & set(b))
    assert step == (different[0] if different else None)


@given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), max_size=9))
def test_the_first_row_that_differs(a: list[int], b: list[int]) -> None:
    row, count = first_row(np.array(a, np.uint32), np.array(b, np.uint32))
    if a == b:
        assert (row, count) == (None, 0)
        return
    assert row is not None
    assert a[:row] == b[:row]
    assert a[row : row + 1] != b[row : row + 1]
    different = sum(mine != theirs for mine, theirs in zip(a, b, strict=False))
    assert count == different + abs(len(a) - len(b))


@given(st.binary(max_size=160).map(lambda raw: raw[: len(raw) // DIGEST_BYTES * DIGEST_BYTES]))
def test_short_digests_are_the_low_words_and_never_zero(samples: bytes) -> None:
    words = [int.from_bytes(samples[at : at + DIGEST_BYTES], "little") % 2**32 for at in range(0, len(samples), 16)]
    short = short_digests(samples)
    assert len(short) == 4 * len(words)
    read = [int.from_bytes(short[at : at + 4], "little") for at in range(0, len(short), 4)]
    assert read == [word or 1 for word in words]


@given(
    samples=st.integers(1, 40), batch_size=st.integers(1, 12), drop=st.booleans(), cut=st.integers(0, 130),
    steps=st.integers(1, 30),
)  # fmt: skip
def test_words_belong_to_their_step_whatever_was_cut(
    tmp_path_factory: pytest.TempPathFactory, samples: int, batch_size: int, drop: bool, cut: int, steps: int
) -> None:
    if drop and samples < batch_size:
        return
    settings = load_settings(
        "drain", environment={}, flags={"batch_size": batch_size, "remainder": "drop" if drop else "keep"}
    )
    plan = BatchPlan(samples, batch_size, settings.remainder)
    folder = tmp_path_factory.mktemp("run")
    writer = rundir.Samples(folder / "samples.u32")
    expected = []
    for step in range(1, steps + 1):
        rows = plan.place(step - 1).rows
        expected.append([1000 * step + row for row in range(rows)])
        writer.add(np.array(expected[-1], "<u4").tobytes())
    writer.close()
    rundir.cut_samples(folder / "samples.u32", cut)
    delivered = samples - samples % batch_size if drop else samples
    run = Recorded(
        path=folder, settings=settings, store=None, fingerprint="", identity="", steps={},
        epoch_samples=delivered if steps >= plan.batches_per_epoch else None, doubt="",
    )  # fmt: skip
    before = 0
    for step, numbers in enumerate(expected, 1):
        before += len(numbers)
        words = run.words(step)
        assert (None if words is None else words.tolist()) == (numbers if before <= cut else None)
