"""Several trainers over a store with images that cannot be decoded: what is left is trained on as by one."""

import json
from pathlib import Path

import pytest

from fourstage.order import permutation
from fourstage.store.prepare import prepare
from tests.decoding.stores import with_a_truncated_image
from tests.pipeline.harness import complete_run, lines, write_photographs
from tests.pipeline.test_ranks import DOUBLE, EXACT, NARROW, NETWORK, check_equal, outcome

pytestmark = pytest.mark.slow
SAMPLES, BATCH, SEED = 39, 19, 3
SKIP = ["--set", "on_corrupt=skip", "--set", "corrupt_share=0.5", "--max-steps", "5"]
POSITIONS = [0, 6, 7, 8, 9, 10, 11, 20]
"""In the first epoch: of three shares of the first batch (6, 6, 7 rows) the second one is empty."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_photographs(folder, "train", 13)
    write_photographs(folder, "val", 2)
    prepare(folder / "train", folder / "store", size=72, workers=1)
    prepare(folder / "val", folder / "store", split="val", size=72, workers=1)
    for index in permutation(SEED, 0, SAMPLES)[POSITIONS].tolist():
        with_a_truncated_image(folder / "store", index)
    with_a_truncated_image(folder / "store", 4, split="val")
    return folder / "store"


@pytest.fixture(scope="module")
def alone(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    complete_run(store, run_dir, *NETWORK, *NARROW, *DOUBLE, *SKIP)
    return run_dir


@pytest.mark.parametrize(
    "how",
    [
        ["--parallel", "data", "--set", "replicas=2"],
        ["--parallel", "data", "--set", "replicas=3"],
        ["--parallel", "data", "--set", "replicas=2", "--set", "decode=device"],
        ["--parallel", "columns"],
        ["--parallel", "columns", "--transport", "inline"],
    ],
    ids=["two", "three", "device", "columns", "columns-inline"],
)
def test_it_trains_like_one(store: Path, tmp_path: Path, alone: Path, how: list[str]) -> None:
    run_dir = tmp_path / "run"
    found = outcome(store, run_dir, *NARROW, *DOUBLE, *SKIP, *how)
    expected = {"losses": [line["loss"] for line in lines(alone / "steps.jsonl")]} | summary_of(alone)
    check_equal(found, expected, EXACT)
    for name in ("corrupt", "samples", "digest"):
        assert [line[name] for line in lines(run_dir / "receipt.jsonl")] == [
            line[name] for line in lines(alone / "receipt.jsonl")
        ]
    assert [line.get("corrupt") for line in lines(run_dir / "steps.jsonl")] == [
        line.get("corrupt") for line in lines(alone / "steps.jsonl")
    ]


def summary_of(run_dir: Path) -> dict[str, object]:
    summary = json.loads((run_dir / "summary.json").read_text())
    return {"digest": summary["receipt"]["digest"], "final": summary["final"]}
