"""What a run directory tells a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage import rundir
from fourstage.errors import SettingsError
from fourstage.figures.crossing import Curve
from fourstage.resolve import read_toml, validated
from fourstage.settings import Settings


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory under the name by which figures call it."""

    name: str
    path: Path

    def settings(self) -> Settings:
        """Everything resolved, as the run began."""
        return validated(read_toml(self.path / rundir.SETTINGS))

    def steps(self) -> list[dict[str, Any]]:
        """The lines of ``steps.jsonl`` that have a loss."""
        return [line for line in rundir.read_lines(self.path / rundir.STEPS) if line["loss"] is not None]

    def errors(self, split: str) -> Curve:
        """The top-1 error of ``train`` or ``val`` by epochs trained; empty where none was measured.

        The training error of an epoch is that of its batches as they were trained on. A last line within an
        epoch lies at the share of it that was trained.
        """
        lines = rundir.read_lines(self.path / rundir.EPOCHS)
        # A run that was resumed within an epoch may have told of it twice.
        newest = {line["epoch"]: line for line in lines if line["step"]}
        if not newest:
            return Curve((), ())
        steps_per_epoch = max(line["step"] / (line["epoch"] + 1) for line in newest.values())
        points = [
            (line["step"] / steps_per_epoch, line[split]["top1_error"])
            for _, line in sorted(newest.items())
            if line[split] is not None
        ]
        return Curve(tuple(epoch for epoch, _ in points), tuple(error for _, error in points))


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """Run directories, named by as many of their last folders as tell them apart. Raises SettingsError."""
    resolved = [path.resolve() for path in paths]
    for path in resolved:
        if not (path / rundir.SETTINGS).is_file():
            raise SettingsError(f"{path} holds no run", hint="name a directory that fourstage run has written")
        if resolved.count(path) > 1:
            raise SettingsError(f"--run-dir {path} is given twice")
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) < len(resolved):
        depth += 1
    return [Run("-".join(path.parts[-depth:]), path) for path in resolved]
