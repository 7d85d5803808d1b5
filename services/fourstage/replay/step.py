"""One step of a run made again: its batch, whether the run recorded the same, and its picture."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fourstage import rundir
from fourstage.errors import FourstageError, SettingsError
from fourstage.replay.compare import Sample, sample_of
from fourstage.replay.recorded import Recorded
from fourstage.replay.remake import Remade, Remaker, digest_of
from fourstage.trainer.receipt import DIGEST_BYTES

FOLDER = "batches"
SHOWN = 64
"""Crops of a picture unless it is told which."""
MOST_SHOWN = 256

Verdict: TypeAlias = Literal["matches", "differs", "not-recorded"]


@dataclass(frozen=True, slots=True)
class Again:
    """A step's batch as store and settings make it."""

    run: Recorded
    step: int
    batch: Remade
    samples: tuple[Sample, ...]
    digests: tuple[str, ...]
    """Of each sample, as the receipt has them."""
    digest: str
    recorded: str | None
    """What the run recorded for this step; None: nothing yet."""
    other_identity: bool
    """The run's workers had another decoder or transform than this process."""

    @property
    def verdict(self) -> Verdict:
        """Whether the run recorded the same batch."""
        if self.recorded is None:
            return "not-recorded"
        return "matches" if self.recorded == self.digest else "differs"

    @property
    def words(self) -> str:
        """The verdict in words."""
        covers = "keys, labels, draws" + (" and pixels" if self.run.settings.receipt == "pixels" else "")
        match self.verdict:
            case "not-recorded":
                return f"the run has not recorded step {self.step} yet"
            case "matches":
                return f"matches the receipt of the run ({covers})"
            case "differs":
                return f"differs from the receipt of the run ({covers}), which has {self.recorded}"


def make_again(run: Recorded, remaker: Remaker, step: int) -> Again:
    """Make a step's batch again. Raises FourstageErrors: the run has no such step, or its settings have changed
    since, or an image cannot be read."""
    last = max(remaker.steps, run.last_step)
    if not 1 <= step <= last:
        raise SettingsError(f"step {step} is not in the plan of {run.path}", hint=f"its steps are 1 to {last}")
    if run.doubt:
        raise FourstageError(
            f"step {step} cannot be made again: {run.doubt}",
            hint=f"set it back in {run.path / rundir.SETTINGS}",
        )
    recorded = run.steps.get(step)
    batch = remaker.closed_up(remaker.batch(step), recorded.corrupt if recorded else ())
    samples = remaker.samples(batch, run.settings.receipt)
    return Again(
        run=run,
        step=step,
        batch=batch,
        samples=tuple(sample_of(batch, row, remaker.store.classes) for row in range(len(batch.keys))),
        digests=tuple(samples[at : at + DIGEST_BYTES].hex() for at in range(0, len(samples), DIGEST_BYTES)),
        digest=digest_of(batch, samples),
        recorded=recorded.digest if recorded else None,
        other_identity=run.identity not in ("", remaker.identity),
    )


def shown_rows(text: str | None, rows: int) -> slice:
    """``FIRST:LAST``, rows of a batch from 0, both shown; None: the first ones. Raises SettingsError."""
    if text is None:
        return slice(0, min(SHOWN, rows))
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) <= int(last) < rows):
        raise SettingsError(f"--rows {text!r}", hint=f"FIRST:LAST, rows of this batch, from 0 to {rows - 1}")
    if int(last) - int(first) >= MOST_SHOWN:
        raise SettingsError(f"--rows {text!r}", hint=f"at most {MOST_SHOWN} rows are shown in one picture")
    return slice(int(first), int(last) + 1)


def picture_path(run_dir: Path, step: int, rows: slice) -> Path:
    """Where the picture of a step's rows is written unless the user says so."""
    page = "" if rows.start == 0 else f"-rows-{rows.start}-{rows.stop - 1}"
    return run_dir / FOLDER / f"step-{step:06d}{page}.png"


def write_picture(again: Again, remaker: Remaker, rows: slice, path: Path) -> None:
    """Draw the rows of the batch and write them. Raises FourstageErrors."""
    from fourstage.replay.picture import draw_sheet, shifted, write_sheet

    part = again.batch.rows(rows)
    place, count = again.batch.place, len(again.batch.keys)
    some = "all are shown" if rows == slice(0, count) else f"rows {rows.start} to {rows.stop - 1} are shown"
    heading = [
        f"{count} samples, positions {place.first} to {place.first + count - 1} of epoch {place.epoch}; {some}",
        f"digest {again.digest}: {again.words}",
        "Crops as trained on, reflected where drawn, the colour shift added and clipped to 0..255, no mean subtracted.",
    ]
    if again.batch.left_out:
        heading.append(f"{len(again.batch.left_out)} of the samples cannot be decoded and are left out: black here.")
    crops = shifted(remaker.pixels(part), part.shifts)
    title = f"{again.run.path.resolve().name}: step {again.step}"
    write_sheet(draw_sheet(title, heading, rows.start, again.samples[rows], crops), path)


def document(again: Again, rows: slice, picture: Path) -> dict[str, Any]:
    """Everything in plain values; samples are those of the whole batch."""
    return {
        "run_dir": str(again.run.path),
        "step": again.step,
        "epoch": again.batch.place.epoch,
        "first_position": again.batch.place.first,
        "rows": len(again.samples),
        "left_out": len(again.batch.left_out),
        "receipt": again.run.settings.receipt,
        "digest": again.digest,
        "recorded_digest": again.recorded,
        "verdict": again.verdict,
        "other_decoder": again.other_identity,
        "picture": str(picture),
        "picture_rows": [rows.start, rows.stop - 1],
        "samples": [
            asdict(sample) | {"row": row, "digest": digest}
            for row, (sample, digest) in enumerate(zip(again.samples, again.digests, strict=True))
        ],
    }
