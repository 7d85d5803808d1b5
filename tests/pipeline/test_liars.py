"""Augmenters with every right to be there, and one lie each: refused, named, and the batches are those of the others.

Every liar does all else as it should, so each batch that it spoils is one that it was rightly given.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.harness import CROP, Services, complete_run, eventually, lines, services
from tests.pipeline.liar import ARENAS, OF_ITS_OWN, TO_THE_LOADER, TO_THE_TRAINER

EPOCHS = 8
RUN = ("batch_size=8", f"augmenter.crop={CROP}", f"train.epochs={EPOCHS}", "receipt=pixels")
FLAGS = tuple(part for setting in RUN for part in ("--set", setting))


@pytest.fixture(scope="module")
def honest(store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the batches as they are."""
    run_dir = tmp_path_factory.mktemp("honest") / "run"
    summary = complete_run(store, run_dir, "--recipe", "drain", "--augmenters", "1", *FLAGS)
    return str(summary["receipt"]["digest"])


def start_liar(running: Services, lie: str) -> None:
    flags = [f"loader.address={running.address}", f"sockets={running.folder}", *running.settings]
    with (running.folder / f"{lie}.log").open("ab") as log:
        running.processes[lie] = subprocess.Popen(
            [
                sys.executable, "-m", "tests.pipeline.liar", lie, str(running.folder / f"{lie}.told"),
                "augmenter", "--name", lie, *(part for flag in flags for part in ("--set", flag)),
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def among_liars(store: Path, folder: Path, lies: list[str], *more: str) -> tuple[str, str, str, float]:
    """A run whose augmenters but one lie: its digest, the trainer's log, the loader's, and how many were refused.

    more: settings of the trainer
    """
    with services(store, folder, 1, settings=("loader.hedge_seconds=0.3",)) as running:
        for lie in lies:
            start_liar(running, lie)
        eventually(
            lambda: running.metric("loader", "fourstage_peers", role="augmenter") == len(lies) + 1, "all liars", 90.0
        )
        running.start_trainer("drain", *FLAGS, *(part for setting in more for part in ("--set", setting)))
        trainer = running.processes["trainer"]
        eventually(lambda: trainer.poll() is not None, "the end of the run", 120.0)
        said = [(folder / f"{name}.log").read_text() for name in ("trainer", "loader")]
        assert trainer.returncode == 0, said
        untold = [lie for lie in lies if not (folder / f"{lie}.told").exists()]
        assert not untold, "they had no occasion to lie"
        refused = running.metric("loader", "fourstage_workers_refused_total")
        faults = running.metric("loader", "fourstage_peer_errors_total")
        assert faults >= sum(bool(TO_THE_LOADER[lie][1]) for lie in lies if lie in TO_THE_LOADER)
    return lines(folder / "run" / "receipt.jsonl")[-1]["digest"], *said, refused


@pytest.mark.parametrize(
    "lies",
    [
        pytest.param(list(TO_THE_TRAINER)[:3], id="some"),
        pytest.param(list(TO_THE_TRAINER)[3:8], id="batches", marks=pytest.mark.slow),
        pytest.param(list(TO_THE_TRAINER)[8:], id="payloads", marks=pytest.mark.slow),
    ],
)
def test_a_batch_that_cannot_be_right_is_made_by_another_worker(
    store: Path, tmp_path: Path, honest: str, lies: list[str]
) -> None:
    digest, trainer, loader, refused = among_liars(store, tmp_path, lies)
    assert digest == honest
    assert refused == len(lies)
    for lie in lies:
        assert re.search(TO_THE_TRAINER[lie][1], trainer), (lie, trainer)
        assert f"nothing more is taken from {lie}" in trainer, trainer
        assert re.search(rf"{lie}\S* gets no lease of stream", loader), loader


def test_an_arena_that_could_fault_or_shrink_is_not_mapped_and_its_batches_come_inline(
    store: Path, tmp_path: Path, honest: str
) -> None:
    digest, trainer, _, refused = among_liars(store, tmp_path, list(ARENAS))
    assert digest == honest
    assert refused == 0, "what they send then is right"
    assert trainer.count("dropped an arena") >= len(ARENAS), trainer


@pytest.mark.parametrize(
    "lies",
    [
        pytest.param(list(TO_THE_LOADER)[:4], id="holdings", marks=pytest.mark.slow),
        pytest.param(list(TO_THE_LOADER)[4:], id="orders"),
    ],
)
def test_what_an_augmenter_says_that_is_not_for_it_to_say_changes_nothing(
    store: Path, tmp_path: Path, honest: str, lies: list[str]
) -> None:
    digest, trainer, loader, _ = among_liars(store, tmp_path, lies)
    assert digest == honest
    assert "cannot be decoded" not in trainer
    for lie in lies:
        assert TO_THE_LOADER[lie][1] in loader


def test_a_worker_that_fails_at_its_own_batch_where_corrupt_samples_are_left_out_does_not_end_the_run(
    store: Path, tmp_path: Path, honest: str
) -> None:
    digest, _, loader, refused = among_liars(store, tmp_path, list(OF_ITS_OWN), "on_corrupt=skip")
    assert digest == honest
    assert refused == len(OF_ITS_OWN)
    for lie in OF_ITS_OWN:
        assert re.search(rf"{lie}\S* gets no lease of stream \S*: {OF_ITS_OWN[lie][1]}", loader), loader
