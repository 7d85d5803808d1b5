"""Batches and comparisons as tables for a person and as plain values."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from fourstage.replay.compare import Comparison, Difference, Sample, Side
from fourstage.replay.step import Again


def batch_table(again: Again, rows: slice) -> Table:
    """The samples of some rows."""
    place = again.batch.place
    title = (
        f"{escape(str(again.run.path))}: step {again.step}, epoch {place.epoch}, "
        f"{len(again.samples)} samples from position {place.first}"
    )
    shown = Table(title=title, title_justify="left")
    shown.add_column("row", justify="right", no_wrap=True)
    shown.add_column("position", justify="right", no_wrap=True)
    shown.add_column("key", overflow="fold")
    shown.add_column("label", overflow="fold")
    for column in ("crop at", "reflected", "shift"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row, sample in enumerate(again.samples[rows], rows.start):
        shown.add_row(
            str(row), str(sample.position), escape(sample.key), escape(sample.label_name), _offsets(sample),
            _reflected(sample), "left out" if sample.left_out else _shift(sample),
            style="red" if sample.left_out else "",
        )  # fmt: skip
    return shown


def settings_table(comparison: Comparison) -> Table:
    """What differs of what the batches depend on."""
    shown = Table(title="other settings", title_justify="left")
    for column in ("", "A", "B"):
        shown.add_column(column, overflow="fold")
    for name, a, b in comparison.settings:
        shown.add_row(name, *("unset" if value is None else escape(str(value)) for value in (a, b)))
    return shown


def difference_table(first: Difference) -> Table:
    """Both sides of the first sample that differs; of the step where no sample is known."""
    named = "sample" if any(side.sample for side in first.sides) else "step"
    shown = Table(title=f"the first {named} that differs", title_justify="left")
    for column in ("", "A", "B"):
        shown.add_column(column, overflow="fold")
    a, b = (dict(_facts(side)) for side in first.sides)
    for name in a | b:
        one, other = a.get(name, "none"), b.get(name, "none")
        shown.add_row(name, escape(one), escape(other), style="bold" if one != other else "")
    return shown


def sentence(first: Difference) -> str:
    """The first difference in words."""
    epochs = " and ".join(dict.fromkeys(str(side.epoch) for side in first.sides))
    where = f"the first difference: step {first.step}, epoch {epochs}"
    if first.row is not None:
        where += f", row {first.row}, position {first.position}"
    said = f"{where}: " + (", ".join(first.what) if first.what else "in what is not known")
    if first.differing is not None and first.row is not None:
        said += f"; {first.differing} sample{'s' if first.differing > 1 else ''} of this step"
        said += " differ" if first.differing > 1 else " differs"
    return said


def verdict(comparison: Comparison) -> str:
    """Whether the runs are equal, in words."""
    a, b = (run.last_step for run in comparison.runs)
    covers = comparison.runs[0].settings.receipt
    what = "key, label and draw" if covers == "keys" else "key, label, draw and pixel"
    if comparison.first is None:
        said = f"equal over {comparison.common_steps:,} common steps, every {what}"
    else:
        before = comparison.first.step - 1
        said = sentence(comparison.first) + (f"; equal up to step {before:,}" if before else "")
    if a == b:
        return said
    return f"{said}; {'A' if a > b else 'B'} is longer: {a:,} and {b:,} steps"


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Everything in plain values."""
    a, b = (run.last_step for run in comparison.runs)
    first = comparison.first
    return {
        "equal": first is None,
        "runs": [str(run.path) for run in comparison.runs],
        "receipt": comparison.runs[0].settings.receipt,
        "common_steps": comparison.common_steps,
        "steps": [a, b],
        "longer": None if a == b else "a" if a > b else "b",
        "settings": [{"name": name, "a": mine, "b": theirs} for name, mine, theirs in comparison.settings],
        "first": None if first is None else asdict(first),
        "notes": list(comparison.notes),
    }


def _facts(side: Side) -> Iterator[tuple[str, str]]:
    if side.rows is not None:
        yield "samples of the step", str(side.rows)
    yield "epoch", str(side.epoch)
    sample = side.sample
    if sample is not None:
        yield "key", sample.key
        yield "label", sample.label_name
        yield "number in the split", str(sample.index)
        yield "crop at", _offsets(sample)
        yield "reflected", _reflected(sample)
        yield "shift", _shift(sample)
        if sample.left_out:
            yield "left out", sample.left_out
    if side.sample_made_again is not None:
        yield "digest of the sample", "as made again here" if side.sample_made_again else "not as made again here"
    yield "digest of the step", side.digest
    if side.made_again is not None:
        yield "made again here", "the same" if side.made_again else "another one"


def _offsets(sample: Sample) -> str:
    return f"{sample.offsets[0]}, {sample.offsets[1]}"


def _reflected(sample: Sample) -> str:
    return "yes" if sample.reflected else "no"


def _shift(sample: Sample) -> str:
    return _numbers(sample.shift) if any(sample.shift) else "none"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:+.2f}" for value in values)
