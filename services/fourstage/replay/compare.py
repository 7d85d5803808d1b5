"""The first step and the first sample in which two runs differ, and in what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourstage import rundir
from fourstage.errors import FourstageError, SettingsError
from fourstage.replay.recorded import BATCH_SETTINGS, LENGTH_SETTINGS, Recorded, Step
from fourstage.replay.remake import Remade, Remaker, digest_of
from fourstage.trainer.receipt import SKIPPED, short_digests


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of one run's batch as its settings and store make it."""

    position: int
    """In its epoch."""
    key: str
    index: int
    """Its number in the split."""
    label: int
    label_name: str
    offsets: tuple[int, int]
    """Row and column of the crop in the stored image."""
    reflected: bool
    shift: tuple[float, float, float]
    """Red, green, blue."""
    left_out: str = ""
    """Why it cannot be decoded, where its batch goes without it."""


@dataclass(frozen=True, slots=True)
class Side:
    """One run at the first step that differs."""

    epoch: int
    digest: str
    """As recorded."""
    made_again: bool | None
    """Whether the batch made again here has this digest; None: it could not be made again."""
    rows: int | None
    """Samples of the batch; None: not known."""
    sample: Sample | None
    """The first one that differs; None: not known, or the batch has none at this row."""
    sample_made_again: bool | None
    """Whether the digest that the run kept of it is that of the one made here; None: the run kept none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first one between two runs."""

    step: int
    what: tuple[str, ...]
    """Of ``batch size``, ``epoch``, ``order``, ``labels``, ``draws``, ``left out``, ``pixels``; empty: not known."""
    row: int | None
    """Of the batch, from 0; None: the sample cannot be named."""
    position: int | None
    """In the epoch."""
    differing: int | None
    """Samples of this step that differ."""
    sides: tuple[Side, Side]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side."""

    runs: tuple[Recorded, Recorded]
    settings: tuple[tuple[str, Any, Any], ...]
    """What differs of all that their batches depend on: a name and both values."""
    common_steps: int
    first: Difference | None
    """None: the common steps are equal."""
    notes: tuple[str, ...]
    """Why something could not be found out."""


@dataclass(frozen=True, slots=True)
class _Again:
    """What one run knows of one step's batch."""

    batch: Remade | None = None
    made_again: bool | None = None
    remade: NDArray[np.uint32] | None = None
    """Short digests of the samples made here."""
    kept: NDArray[np.uint32] | None = None
    """Those that the run kept."""
    problem: str = ""
    """Why the samples cannot be made here."""

    @property
    def words(self) -> NDArray[np.uint32] | None:
        """Short digests of the samples that the run was trained on, as far as anybody knows."""
        return self.kept if self.kept is not None else self.remade if self.made_again else None

    @property
    def rows(self) -> int | None:
        known = self.batch.keys if self.batch is not None else self.kept
        return None if known is None else len(known)

    def left_out(self, row: int) -> bool:
        """Whether the run was trained without a row, as far as anybody knows."""
        if self.words is not None:
            return row < len(self.words) and bool(self.words[row] == SKIPPED)
        return self.batch is not None and row in self.batch.left_out


def compare(
    runs: tuple[Recorded, Recorded], remakers: tuple[Remaker | None, Remaker | None], notes: Sequence[str] = ()
) -> Comparison:
    """Compare what both runs have recorded. remakers: they name the sample; without them only the step is known.

    Raises SettingsError for runs that cannot be compared, StoreError where an image cannot be read.
    """
    kinds = [run.settings.receipt for run in runs]
    if kinds[0] != kinds[1]:
        raise SettingsError(
            f"the receipt of {runs[0].path} covers {kinds[0]}, that of {runs[1].path} {kinds[1]}: their digests differ "
            "in any case",
            hint="compare runs with the same --receipt",
        )
    for run in runs:
        if not run.steps:
            raise SettingsError(f"{run.path} has recorded no step yet", hint="compare runs that have been training")
    common, step = first_difference(runs[0].steps, runs[1].steps)
    first, more = None, list(notes)
    if step is not None:
        again = [_again(run, remaker, step) for run, remaker in zip(runs, remakers, strict=True)]
        first = _difference(runs, remakers, (again[0], again[1]), step)
        more += _remarks(runs, (again[0], again[1]), first)
    return Comparison(runs, different_settings(*runs), common, first, tuple(more))


def first_difference(a: Mapping[int, Step], b: Mapping[int, Step]) -> tuple[int, int | None]:
    """How many steps both have, and the first of these whose digests differ; None where there is none."""
    common = sorted(a.keys() & b.keys())
    return len(common), next((step for step in common if a[step].digest != b[step].digest), None)


def different_settings(a: Recorded, b: Recorded) -> tuple[tuple[str, Any, Any], ...]:
    """What differs of the settings that batches and their number depend on, of stores and decoders."""
    values = [(name, a.setting(name), b.setting(name)) for name in (*BATCH_SETTINGS, *LENGTH_SETTINGS)]
    # Where one is not known they are not said to differ.
    for name, mine, theirs in (
        ("store", a.fingerprint[:12], b.fingerprint[:12]),
        ("decoder's identity", a.identity[:12], b.identity[:12]),
    ):
        if mine and theirs:
            values.append((name, mine, theirs))
    return tuple(entry for entry in values if entry[1] != entry[2])


def _difference(
    runs: tuple[Recorded, Recorded],
    remakers: tuple[Remaker | None, Remaker | None],
    again: tuple[_Again, _Again],
    step: int,
) -> Difference:
    a, b = again
    row, differing = None, None
    if a.words is not None and b.words is not None:
        row, differing = first_row(a.words, b.words)
    elif a.batch is not None and b.batch is not None:
        row, differing = first_row(_records(a.batch), _records(b.batch))
    what = []
    if a.rows is not None and b.rows is not None and a.rows != b.rows:
        what.append("batch size")
    if runs[0].steps[step].epoch != runs[1].steps[step].epoch:
        what.append("epoch")
    if row is not None:
        what += _what(a, b, row)
    position = None
    if row is not None:
        place = next((known.batch.place for known in again if known.batch is not None), runs[0].place(step)[0])
        position = place.first + row
    sides = [
        Side(
            epoch=run.steps[step].epoch,
            digest=run.steps[step].digest,
            made_again=known.made_again,
            rows=known.rows,
            sample=None if row is None or remaker is None else _sample(known.batch, remaker, row),
            sample_made_again=None if row is None else _as_made(known, row),
        )
        for run, remaker, known in zip(runs, remakers, again, strict=True)
    ]
    return Difference(step, tuple(what), row, position, differing, (sides[0], sides[1]))


def _again(run: Recorded, remaker: Remaker | None, step: int) -> _Again:
    kept = run.words(step) if run.settings.receipt == "pixels" else None
    if remaker is None:
        return _Again(kept=kept)
    batch = remaker.batch(step)
    try:
        batch = remaker.closed_up(batch, run.steps[step].corrupt)
        samples = remaker.samples(batch, run.settings.receipt)
    except FourstageError as error:
        return _Again(batch=batch, kept=kept, problem=f"{run.path}: step {step} cannot be made again: {error}")
    return _Again(
        batch=batch,
        made_again=digest_of(batch, samples) == run.steps[step].digest,
        remade=np.frombuffer(short_digests(samples), "<u4"),
        kept=kept,
    )


def first_row(a: NDArray[Any], b: NDArray[Any]) -> tuple[int | None, int]:
    """The first row in which two batches differ, None where there is none, and how many do.

    Rows that only the longer one has differ as well.
    """
    both = min(len(a), len(b))
    different = np.flatnonzero(a[:both] != b[:both])
    count = len(different) + max(len(a), len(b)) - both
    return (int(different[0]) if len(different) else both if count else None), count


def _records(batch: Remade) -> NDArray[np.object_]:
    """All that the digest of each sample covers but its pixels, as one object a row."""
    rows = np.empty(len(batch.keys), np.object_)
    for row, key in enumerate(batch.keys):
        rows[row] = (
            key, batch.indices[row], batch.labels[row], *batch.offsets[row], batch.reflections[row],
            *batch.shifts[row], row in batch.left_out,
        )  # fmt: skip
    return rows


def _what(a: _Again, b: _Again, row: int) -> list[str]:
    """In what a row differs."""
    if a.batch is None or b.batch is None or row >= min(len(a.batch.keys), len(b.batch.keys)):
        return []
    one, other = a.batch, b.batch
    what = []
    if one.keys[row] != other.keys[row] or one.indices[row] != other.indices[row]:
        what.append("order")
    elif one.labels[row] != other.labels[row]:
        what.append("labels")
    if any(
        np.any(mine[row] != theirs[row])
        for mine, theirs in (
            (one.offsets, other.offsets), (one.reflections, other.reflections), (one.shifts, other.shifts)
        )
    ):  # fmt: skip
        what.append("draws")
    if a.left_out(row) != b.left_out(row):
        what.append("left out")
    # Key, label and draws that the settings make are the same, the digest is not: nothing else is covered.
    return what or ["pixels"]


def _as_made(again: _Again, row: int) -> bool | None:
    if again.kept is None or again.remade is None or row >= min(len(again.kept), len(again.remade)):
        return None
    return bool(again.kept[row] == again.remade[row])


def _sample(batch: Remade | None, remaker: Remaker, row: int) -> Sample | None:
    if batch is None or row >= len(batch.keys):
        return None
    return sample_of(batch, row, remaker.store.classes)


def sample_of(batch: Remade, row: int, classes: Sequence[str]) -> Sample:
    """One row of a batch in plain values. classes: the store's names."""
    top, left = batch.offsets[row].tolist()
    red, green, blue = batch.shifts[row].tolist()
    label = int(batch.labels[row])
    return Sample(
        position=batch.place.first + row,
        key=batch.keys[row],
        index=int(batch.indices[row]),
        label=label,
        label_name=classes[label],
        offsets=(top, left),
        reflected=bool(batch.reflections[row]),
        shift=(red, green, blue),
        left_out=batch.left_out.get(row, ""),
    )


def _remarks(runs: tuple[Recorded, Recorded], again: tuple[_Again, _Again], first: Difference) -> list[str]:
    """What else is to be said of the first step that differs."""
    said = [known.problem for known in again if known.problem]
    steps = [run.steps[first.step] for run in runs]
    for run, step in zip(runs, steps, strict=True):
        if step.corrupt and steps[0].corrupt != steps[1].corrupt:
            keys = ", ".join(repr(key) for key in step.corrupt)
            said.append(f"{run.path} was trained in step {first.step} without {keys}: not decodable")
    for run, known in zip(runs, again, strict=True):
        if known.made_again is False:
            said.append(f"{run.path} did not record for step {first.step} what its settings and its store make here")
    if any(known.batch is None for known in again):
        wanted = "naming the sample" if first.row is None else "saying in what the sample differs"
        said.append(f"{wanted} needs the store of both runs: give --store")
    elif first.row is None:
        pixels = runs[0].settings.receipt == "pixels"
        said.append(
            "the sample cannot be named: the settings make equal keys, labels and draws"
            + (f", and {rundir.SAMPLES} does not say which pixels are other ones" if pixels else "")
        )
    return said
