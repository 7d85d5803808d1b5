"""An evaluation as files, and as a table for a person."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fourstage import rundir
from fourstage.errors import FourstageError, SettingsError
from fourstage.evaluation.counts import confusion, errors_by_class, wilson_interval
from fourstage.evaluation.evaluate import Evaluation
from fourstage.trainer.rates import ErrorRates

FOLDER = "evaluation"
EVALUATION, CLASSES, CONFUSION, PREDICTIONS = "evaluation.json", "classes.csv", "confusion.csv", "predictions.csv"


def check_folder(path: Path) -> None:
    """Refuse a folder that cannot be written to before the work whose fruit it is for. Raises SettingsError."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise SettingsError(f"--out {path}: {there} is no folder that can be written to", hint="name another --out")


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write all four files, each whole or not at all, ``evaluation.json`` last. Raises FourstageError
    where the disk does not take them."""
    names = evaluation.store.classes
    tables = {
        CLASSES: _classes_table(evaluation, names),
        CONFUSION: _confusion_table(evaluation, names),
        PREDICTIONS: _predictions_table(evaluation, names),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            rundir.write_whole(folder / name, _csv(rows))
        rundir.write_json(folder / EVALUATION, document(evaluation))
    except OSError as error:
        raise FourstageError(
            f"cannot write to {folder}: {error.strerror}", hint="free space, or name another --out"
        ) from error


def document(evaluation: Evaluation) -> dict[str, Any]:
    """What ``evaluation.json`` holds: plain values, the same for every number of augmenters."""
    return {
        "split": evaluation.split,
        "views": evaluation.views,
        "store": str(evaluation.store.path),
        "store_fingerprint": evaluation.store.fingerprint,
        "classes": len(evaluation.store.classes),
        "intervals": "Wilson, 95 %",
        **_rates(evaluation.rates),
        "corrupt": list(evaluation.corrupt),
        "runs": [
            {
                "run_dir": str(run.trained.run_dir),
                "step": run.trained.step,
                "device": str(run.trained.device),
                "same_store": run.same_store,
                **_rates(run.rates),
                "settings": run.trained.settings.model_dump(mode="json"),
            }
            for run in evaluation.runs
        ],
    }


def table(evaluation: Evaluation) -> Table:
    """Errors of each run, and of their mean where there are several, as the paper's tables have them."""
    views = "one view" if evaluation.views == 1 else f"{evaluation.views} views"
    images = f"{evaluation.rates.samples:,} images"
    if count := len(evaluation.corrupt):
        images += f" ({count} more cannot be decoded: {EVALUATION} names them)"
    title = f"{escape(evaluation.split)}: {images}, {views}; 95 % intervals (Wilson)"
    shown = Table(title=title, title_justify="left")
    shown.add_column("run", overflow="fold")
    for column in ("step", "top-1 error", "top-5 error", "loss"):
        shown.add_column(column, justify="right", no_wrap=True)
    for run in evaluation.runs:
        shown.add_row(escape(str(run.trained.run_dir)), f"{run.trained.step:,}", *_cells(run.rates))
    if len(evaluation.runs) > 1:
        shown.add_section()
        shown.add_row(f"mean of {len(evaluation.runs)}", "", *_cells(evaluation.rates))
    return shown


def _rates(rates: ErrorRates) -> dict[str, Any]:
    return {
        "samples": rates.samples,
        "loss": rates.loss,
        "top1_error": rates.top1_error,
        "top1_interval": _interval(rates.top1_error, rates.samples),
        "top5_error": rates.top5_error,
        "top5_interval": _interval(rates.top5_error, rates.samples),
    }


def _interval(share: float | None, samples: int) -> tuple[float, float] | None:
    return None if share is None else wilson_interval(round(share * samples), samples)


def _cells(rates: ErrorRates) -> tuple[str, str, str]:
    return _cell(rates.top1_error, rates.samples), _cell(rates.top5_error, rates.samples), f"{rates.loss:.4f}"


def _cell(share: float | None, samples: int) -> str:
    if share is None:
        return ""
    low, high = wilson_interval(round(share * samples), samples)
    return f"{share:.2%} ({100 * low:.2f} to {100 * high:.2f})"


def _classes_table(evaluation: Evaluation, names: Sequence[str]) -> Iterable[Sequence[object]]:
    yield "class", "samples", "top1_errors", "top5_errors", "most_frequent_wrong"
    for name, errors in zip(names, errors_by_class(evaluation.predictions, len(names)), strict=True):
        wrong = errors.most_frequent_wrong
        top5 = "" if errors.top5_errors is None else errors.top5_errors
        yield name, errors.samples, errors.top1_errors, top5, "" if wrong is None else names[wrong]


def _confusion_table(evaluation: Evaluation, names: Sequence[str]) -> Iterable[Sequence[object]]:
    yield "true", *names
    for name, row in zip(names, confusion(evaluation.predictions, len(names)).tolist(), strict=True):
        yield name, *row


def _predictions_table(evaluation: Evaluation, names: Sequence[str]) -> Iterable[Sequence[object]]:
    said = evaluation.predictions
    ranks = range(1, said.classes.shape[1] + 1)
    yield "key", "label", *(f"{column}_{rank}" for rank in ranks for column in ("class", "probability"))
    for key, label, classes, shares in zip(
        said.keys, said.labels.tolist(), said.classes.tolist(), said.probabilities.tolist(), strict=True
    ):
        pairs = ((names[number], f"{share:.6g}") for number, share in zip(classes, shares, strict=True))
        yield key, names[label], *(value for pair in pairs for value in pair)


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
