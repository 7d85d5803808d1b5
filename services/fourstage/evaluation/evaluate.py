"""Runs under test: a split through the pipeline, once, and through every network."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourstage.errors import CheckpointError, CorruptSampleError, FourstageError
from fourstage.evaluation.counts import Predictions
from fourstage.evaluation.predict import Predictor, log_mean
from fourstage.evaluation.trained import Trained
from fourstage.store import Store, open_store
from fourstage.store.manifest import Manifest, read_manifest
from fourstage.store.progress import Progress, ProgressCallback
from fourstage.stream import BatchStream
from fourstage.trainer.evaluate import Errors
from fourstage.trainer.rates import ErrorRates

log = logging.getLogger(__name__)

_TOP = 5
_POLICY = ("on_corrupt", "corrupt_count", "corrupt_share", "corrupt_consecutive")


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run's share in an evaluation."""

    trained: Trained
    same_store: bool
    """It was trained on this store, before or after further splits were added; else only the number of classes is
    known to be the same."""
    rates: ErrorRates


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A split as one network or several together see it."""

    store: Store
    split: str
    views: int
    runs: tuple[RunResult, ...]
    rates: ErrorRates
    """Of the mean of all runs' probabilities (paper, section 6)."""
    predictions: Predictions
    """Theirs too."""
    corrupt: tuple[str, ...] = ()
    """Keys of the samples that cannot be decoded, of which nothing is said; the rates are those of the others."""


def evaluate(
    runs: Sequence[Trained],
    store_path: Path,
    *,
    split: str,
    views: int,
    augmenters: int,
    progress: ProgressCallback,
) -> Evaluation:
    """Test one run or more, all on one device, on every sample of a split, in its order.

    views: 1 or 10, see ``cuts``. augmenters: processes that decode while the networks compute; they change nothing
    but the time. The mean image is that of the store's training split. What cannot be decoded is left out where the
    first run's settings say so, as many as they allow.

    Raises SettingsError for views that cannot be cut, StoreError for a store or split that cannot be opened,
    CheckpointError for a run of other classes, FourstageError where a network answers with what is no number.
    """
    store = open_store(store_path)
    total = len(store.split(split))
    same_store = [_check_classes(run, store) for run in runs]
    predictors = [Predictor(run, store.statistics.mean, views=views) for run in runs]
    classes, device = len(store.classes), runs[0].device
    errors = [Errors(classes, device) for _ in runs]
    together = Errors(classes, device)
    keys: list[str] = []
    corrupt: list[str] = []
    labels: list[Tensor] = []
    best: list[tuple[Tensor, Tensor]] = []
    settings = runs[0].settings
    with BatchStream(
        store_path,
        recipe="drain",
        batch_size=settings.validation_batch or settings.batch_size,
        workers=augmenters,
        split=split,
        view="full",
        remainder="keep",
        device=device,
        settings={name: getattr(settings, name) for name in _POLICY},
    ) as stream:
        progress(Progress(done=0, total=total, bytes=0, left_out=0))
        for batch in stream:
            corrupt += stream.skipped
            if not batch["keys"]:
                continue
            said = [predictor(batch["images"]) for predictor in predictors]
            for counted, logs in zip(errors, said, strict=True):
                counted.add(logs, batch["labels"])
            mean = log_mean(said)
            together.add(mean, batch["labels"])
            # A stable sort: of equal probabilities the lower class comes first, as where errors are counted.
            logs, order = mean.sort(stable=True, dim=1, descending=True)
            keys += batch["keys"]
            labels.append(batch["labels"])
            best.append((order[:, :_TOP], logs[:, :_TOP].exp()))
            progress(Progress(done=len(keys), total=total, bytes=0, left_out=len(corrupt)))
    if not keys:
        raise CorruptSampleError(f"no image of the split {split!r} of {store_path} can be decoded")
    results = tuple(
        RunResult(run, same, _finite(counted, str(run.run_dir)))
        for run, same, counted in zip(runs, same_store, errors, strict=True)
    )
    predictions = Predictions(
        keys=tuple(keys),
        labels=torch.cat(labels).cpu().numpy(),
        classes=torch.cat([order for order, _ in best]).cpu().numpy(),
        probabilities=torch.cat([shares for _, shares in best]).cpu().numpy(),
    )
    return Evaluation(store, split, views, results, _finite(together, "all runs together"), predictions, tuple(corrupt))


def _check_classes(run: Trained, store: Store) -> bool:
    """Whether the run was trained on this store. Raises CheckpointError where its classes cannot be the store's."""
    if run.classes != len(store.classes):
        raise CheckpointError(
            f"{run.run_dir} was trained on {run.classes} classes, the store {store.path} has {len(store.classes)}",
            hint="evaluate it on a store of the classes that it was trained on",
        )
    same = grew_from(read_manifest(store.path), run.store_fingerprint)
    if not same:
        log.warning(
            "%s was trained on another store (%.12s): that its %d classes are those of %s cannot be checked",
            run.run_dir, run.store_fingerprint, run.classes, store.path,
        )  # fmt: skip
    return same


def grew_from(manifest: Manifest, fingerprint: str) -> bool:
    """Whether a store has this fingerprint or had it before its later splits were added."""
    splits = list(manifest.splits.items())
    return any(
        manifest.model_copy(update={"splits": dict(splits[:count])}).fingerprint == fingerprint
        for count in range(1, len(splits) + 1)
    )


def _finite(errors: Errors, whose: str) -> ErrorRates:
    rates = errors.result()
    if rates is None or not np.isfinite(rates.loss):
        raise FourstageError(f"the outputs of {whose} are no numbers", hint="its training has diverged")
    return rates
