"""What runs were trained on: one batch made again, two runs compared."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fourstage.cli.shared import DebugOption, JsonOption, RunDirOption
from fourstage.errors import FourstageError
from fourstage.logs import configure_logging

app = typer.Typer(help="The receipts of runs.")

MaybeStoreOption = Annotated[
    Path | None, typer.Option("--store", help="The run's store; unset, where the run says that it was.")
]


def batch(
    step: Annotated[int, typer.Argument(help="Counted from 1, as in steps.jsonl; it may be still to come.")],
    run_dir: RunDirOption,
    store: MaybeStoreOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="The picture; unset, in batches/ of the run directory.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="Rows of the batch to show, from 0; unset, the first 64.")
    ] = None,
    json_: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make the batch of a step again, draw it, and say whether the run recorded the same one."""
    from fourstage.replay import step as replay
    from fourstage.replay.recorded import read_run
    from fourstage.replay.remake import Remaker
    from fourstage.replay.stores import store_of
    from fourstage.replay.written import batch_table

    configure_logging("batch", debug=debug)
    run = read_run(run_dir)
    with Remaker(run.settings, store_of(run, store)) as remaker:
        again = replay.make_again(run, remaker, step)
        shown = replay.shown_rows(rows, len(again.samples))
        picture = out or replay.picture_path(run_dir, step, shown)
        replay.write_picture(again, remaker, shown, picture)
    if json_:
        typer.echo(json.dumps(replay.document(again, shown, picture)))
    else:
        Console().print(batch_table(again, shown))
        if len(again.samples) > shown.stop - shown.start:
            typer.echo(f"{len(again.samples)} samples, of which --rows FIRST:LAST shows others")
        for row, why in again.batch.left_out.items():
            typer.echo(f"left out: row {row}, {again.batch.keys[row]!r} cannot be decoded: {why}")
        typer.echo(f"digest {again.digest}: {again.words}")
        typer.echo(f"picture {picture}: the crops with the colour shift added and clipped; the mean is not subtracted")
    if again.verdict == "differs":
        decoder = "its workers had another decoder than this machine" if again.other_identity else ""
        raise FourstageError(
            f"step {step} of {run_dir} was trained on another batch than its settings and store make here",
            hint=decoder or "fourstage verify on the store says whether its images are what they were",
        )


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Directory of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Directory of another run.")],
    store: Annotated[
        list[Path] | None,
        typer.Option("--store", help="Their store, or each one's; unset, where each run says that its own was."),
    ] = None,
    json_: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Name the first step and sample in which two runs differ, and in what. Exit 0: equal, 1: they differ."""
    from fourstage.replay import written
    from fourstage.replay.diff import diff as diff_runs

    configure_logging("receipt", debug=debug)
    comparison = diff_runs(a, b, store or ())
    if json_:
        typer.echo(json.dumps(written.comparison_document(comparison)))
    else:
        console = Console()
        for name, run in zip("AB", comparison.runs, strict=True):
            typer.echo(f"{name} {run.path}: {run.last_step:,} steps, the receipt covers {run.settings.receipt}")
        if comparison.settings:
            console.print(written.settings_table(comparison))
        if comparison.first is not None:
            console.print(written.difference_table(comparison.first))
        for note in comparison.notes:
            typer.echo(f"note: {note}")
        typer.echo(written.verdict(comparison))
    if comparison.first is not None:
        raise typer.Exit(1)
