"""What runs have learnt, and their pictures."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fourstage.cli.shared import DebugOption, JsonOption, StoreOption, augmenter_count, say
from fourstage.errors import FourstageError
from fourstage.logs import configure_logging
from fourstage.view import StoreBar


def evaluate(
    run_dir: Annotated[list[Path], typer.Option("--run-dir", help="Directory of a run; several are averaged.")],
    store: StoreOption,
    split: Annotated[str, typer.Option(help="The split to test on.")] = "val",
    views: Annotated[int, typer.Option(help="1: the centre; 10: the paper's corners, centre, reflections.")] = 10,
    augmenters: Annotated[str, typer.Option(help="Number of augmenters, or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the files; unset, evaluation in the first run's directory.")
    ] = None,
    json_: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Errors of trained networks on a split, each alone and all averaged, as in the paper's section 6."""
    from fourstage.evaluation import load_trained, written
    from fourstage.evaluation.evaluate import evaluate as evaluate_runs

    configure_logging("evaluate", debug=debug)
    folder = out or run_dir[0] / written.FOLDER
    runs = [load_trained(path, device) for path in run_dir]
    written.check_folder(folder)
    with StoreBar("evaluating", quiet=json_) as progress:
        evaluation = evaluate_runs(
            runs, store, split=split, views=views, augmenters=augmenter_count(augmenters, runs[0].settings),
            progress=progress.show,
        )  # fmt: skip
    written.write(evaluation, folder)
    if json_:
        typer.echo(json.dumps(written.document(evaluation)))
    else:
        Console().print(written.table(evaluation))
        say(f"written to {folder}", quiet=False)


def figures(
    run_dir: Annotated[list[Path], typer.Option("--run-dir", help="Directory of a run; several are compared.")],
    store: Annotated[Path | None, typer.Option("--store", help="The run's store: figure 4 shows its images.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; unset, figures in the first run's directory.")
    ] = None,
    timeline: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="Batches of the timeline; unset, a typical dozen.")
    ] = None,
    neighbours_from: Annotated[int, typer.Option(min=1, help="Training images that figure 4 compares with.")] = 10_000,
    json_: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw runs: learning curves, the paper's figures 1, 3 and 4, and the timeline of the four stages."""
    from fourstage.figures.make import FOLDER, Request, make_figures
    from fourstage.figures.passages import parse_window

    configure_logging("figures", debug=debug)
    with StoreBar("comparing features", quiet=json_ or store is None) as progress:
        request = Request(
            out=out or run_dir[0] / FOLDER, store=store, candidates=neighbours_from,
            window=parse_window(timeline) if timeline else None, progress=progress.show,
        )  # fmt: skip
        made, not_made = make_figures(run_dir, request)
    if json_:
        report = {
            "made": [{"file": str(figure.file), "shows": figure.shows} for figure in made],
            "not_made": [{"name": figure.name, "why": figure.why} for figure in not_made],
        }
        typer.echo(json.dumps(report))
    else:
        for figure in made:
            typer.echo(f"{figure.file}: {figure.shows}")
        for missing in not_made:
            typer.echo(f"{missing.name} is not made: {missing.why}")
    if not made:
        names = ", ".join(map(str, run_dir))
        raise FourstageError(f"no figure can be made of {names}", hint="standard output has the reason of each")
