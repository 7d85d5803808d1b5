"""Every command: parse, build, run, close.

Exit 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted. A failure is one line on standard error that says
what and what to do; ``--debug`` adds the traceback.
"""

import json
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fourstage import __version__, rundir
from fourstage.by_hand import request_rate
from fourstage.engine.foreground import free_run_directory, run_in_foreground
from fourstage.engine.processes import ERROR_PREFIX
from fourstage.errors import FourstageError, SettingsError
from fourstage.resolve import load_settings, write_settings
from fourstage.services import Launch, run_augmenter, run_loader, run_trainer, trace_folder
from fourstage.settings import Settings
from fourstage.telemetry import configure_logging
from fourstage.view import StoreBar, render

app = typer.Typer(
    name="fourstage",
    help="AlexNet's four-stage pipeline as services: load, transform, copy, train.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
log = logging.getLogger(__name__)

StoreOption = Annotated[Path, typer.Option("--store", help="Directory made by fourstage prepare.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]
RunDirOption = Annotated[Path, typer.Option("--run-dir", help="Directory of the run.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Full log, and a traceback with an error.")]
SettingsOption = Annotated[
    str | None, typer.Option("--settings", help="TOML file or recipe; FOURSTAGE_* variables go over it.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, for example batch_size=64."),
]
AnnounceOption = Annotated[Path | None, typer.Option("--announce", hidden=True)]
LifelineOption = Annotated[bool, typer.Option("--lifeline", hidden=True)]


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """The whole command line."""
    if version:
        typer.echo(f"fourstage {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Folder or tar of class folders, ILSVRC's archive, or a flat one.")],
    store: Annotated[Path, typer.Argument(help="Directory to make, or to add a split to.")],
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
    labels: Annotated[Path | None, typer.Option(help="For a flat source: lines 'FILE CLASS'.")] = None,
    labels_map: Annotated[Path | None, typer.Option(help="For integer labels: lines 'ID CLASS'.")] = None,
    inside: Annotated[str, typer.Option(help="Folder inside the source that holds the class folders.")] = "",
    size: Annotated[int, typer.Option(help="Width and height of the stored images.")] = 256,
    quality: Annotated[int, typer.Option(help="JPEG quality.")] = 90,
    workers: Annotated[int | None, typer.Option(help="Processes; unset, one per core.")] = None,
    json_: JsonOption = False,
) -> None:
    """Make a JPEG store from photographs, once. Interrupted, the same command goes on."""
    from dataclasses import asdict

    from fourstage.store.prepare import prepare as prepare_store

    with StoreBar("preparing", quiet=json_) as progress:
        report = prepare_store(
            source, store, split=split, labels=labels, labels_map=labels_map, inside=inside, size=size,
            quality=quality, workers=workers, progress=progress.show,
        )  # fmt: skip
    values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(report).items()}
    if json_:
        typer.echo(json.dumps(values))
        return
    rate = report.images / report.seconds if report.seconds else 0.0
    typer.echo(
        f"{report.images:,} images of {report.classes:,} classes in {report.shards} shards, "
        f"{report.bytes / 1e6:,.1f} MB, {rate:,.0f} images/s; left out: {report.left_out}"
        + (f" (see {store / 'left-out.jsonl'})" if report.left_out else "")
    )
    typer.echo(f"store {store}, fingerprint {report.fingerprint}")


@app.command()
def verify(
    store: Annotated[Path, typer.Argument(help="Directory made by fourstage prepare.")],
    json_: JsonOption = False,
) -> None:
    """Read every byte of a store and compare it with its index."""
    from dataclasses import asdict

    from fourstage.store.verify import verify as verify_store

    with StoreBar("verifying", quiet=json_) as progress:
        report = verify_store(store, progress=progress.show)
    if json_:
        typer.echo(json.dumps(asdict(report), default=str))
    else:
        for problem in report.problems:
            typer.echo(problem)
        typer.echo(f"{report.images:,} images, {len(report.problems)} problems")
    if report.problems:
        raise FourstageError(f"{store} has {len(report.problems)} problems", hint="prepare it again")


@app.command()
def run(
    store: StoreOption,
    run_dir: RunDirOption,
    recipe: Annotated[str | None, typer.Option(help="Name of a recipe, or a TOML file.")] = None,
    augmenters: Annotated[str, typer.Option(help="Number of augmenters, or auto.")] = "auto",
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many steps since the beginning.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of order, draws, weights and dropout.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    parallel: Annotated[str | None, typer.Option(help="none, columns (the paper's two GPUs) or data.")] = None,
    transport: Annotated[str | None, typer.Option(help="arena or inline.")] = None,
    receipt: Annotated[str | None, typer.Option(help="keys or pixels.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Write trace.json for ui.perfetto.dev.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    set_: SetOption = None,
    json_: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train: start loader, augmenters and trainer here, watch them, stop them in order."""
    flags = {
        "train.max_steps": max_steps, "train.epochs": epochs, "seed": seed, "train.device": device,
        "parallel": parallel, "transport": transport, "receipt": receipt, "trace": True if trace else None,
    }  # fmt: skip
    began_with = run_dir / rundir.SETTINGS
    source = recipe or (str(began_with) if resume and began_with.is_file() else "alexnet")
    settings = load_settings(source, overrides=set_ or (), flags=flags)
    code = run_in_foreground(
        settings, store=store, run_dir=run_dir, augmenters=augmenter_count(augmenters, settings), resume=resume,
        as_json=json_, debug=debug,
    )  # fmt: skip
    raise typer.Exit(code)


@app.command()
def demo(
    store: Annotated[Path, typer.Option(help="Where the demo's store is made.")] = Path("stores/demo"),
    run_dir: Annotated[Path, typer.Option(help="Where the run is written; -2, -3 … is added where one is.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the photographs and of the training.")] = 0,
    json_: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw photographs of ten classes, store them, and learn them through all four stages."""
    from fourstage.demo import write_photographs
    from fourstage.store.prepare import prepare as prepare_store

    if not (store / "store.json").is_file():
        with tempfile.TemporaryDirectory(prefix="fourstage-photographs-") as folder:
            _say("drawing 4,500 photographs of ten classes, 120 to 256 pixels wide", quiet=json_)
            photographs = Path(folder)
            write_photographs(photographs, seed=seed, train_per_class=400, validation_per_class=50)
            for split in ("train", "val"):
                with StoreBar(f"preparing {split}", quiet=json_) as progress:
                    prepare_store(photographs / split, store, split=split, size=36, progress=progress.show)
    settings = load_settings("demo", flags={"seed": seed, "trace": True})
    run_dir = free_run_directory(run_dir)
    _say(f"training the four-layer net on {store}; the run is written to {run_dir}", quiet=json_)
    code = run_in_foreground(
        settings, store=store, run_dir=run_dir, augmenters=1, resume=False, as_json=json_, debug=debug
    )
    raise typer.Exit(code)


@app.command()
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
        _say(f"written to {folder}", quiet=False)


@app.command()
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


@app.command()
def status(run_dir: RunDirOption = Path(), json_: JsonOption = False) -> None:
    """Where a run stands and what it waits for."""
    values = rundir.read_json(run_dir / rundir.STATUS)
    if json_:
        typer.echo(json.dumps(values))
    else:
        Console().print(render(values))


@app.command()
def rate(
    value: Annotated[float, typer.Argument(help="The weights' new learning rate; later drops divide it.")],
    run_dir: RunDirOption,
) -> None:
    """Set the learning rate of a run by hand, while it trains or before it is resumed."""
    request_rate(run_dir, value)
    typer.echo(f"rate {value:g} is asked of {run_dir}: its trainer takes it before its next step")


@app.command()
def loader(
    store: StoreOption,
    settings: SettingsOption = None,
    set_: SetOption = None,
    announce: AnnounceOption = None,
    lifeline: LifelineOption = False,
    debug: DebugOption = False,
) -> None:
    """Stage 1 alone: serve a store to trainers and augmenters."""
    raise typer.Exit(run_loader(_launch(settings, set_, announce, lifeline, debug), store))


@app.command()
def augmenter(
    name: Annotated[str, typer.Option(help="Name in logs and traces.")] = "augmenter",
    settings: SettingsOption = None,
    set_: SetOption = None,
    announce: AnnounceOption = None,
    lifeline: LifelineOption = False,
    debug: DebugOption = False,
) -> None:
    """Stage 2 alone: one more worker for the loader at loader.address."""
    raise typer.Exit(run_augmenter(_launch(settings, set_, announce, lifeline, debug), name))


@app.command()
def trainer(
    run_dir: RunDirOption,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    settings: SettingsOption = None,
    set_: SetOption = None,
    announce: AnnounceOption = None,
    lifeline: LifelineOption = False,
    debug: DebugOption = False,
) -> None:
    """Stages 3 and 4 alone: train from the loader at loader.address."""
    launch = _launch(settings, set_, announce, lifeline, debug, trace_folder(run_dir))
    if not lifeline and os.environ.get("RANK", "0") == "0":
        rundir.create_run_directory(run_dir, resume=resume)
        rundir.write_whole(run_dir / rundir.SETTINGS, write_settings(launch.settings))
    raise typer.Exit(run_trainer(launch, run_dir, resume=resume))


def augmenter_count(text: str, settings: Settings) -> int:
    """How many augmenters to start; ``auto``: one per core, less one for a trainer that computes here."""
    if text == "auto":
        cores = len(os.sched_getaffinity(0))
        return max(1, cores - (settings.model.name != "none"))
    if not text.isdigit() or not 1 <= int(text) <= 1024:
        raise SettingsError(f"--augmenters {text!r}", hint="a number from 1 to 1024, or auto")
    return int(text)


def _launch(
    settings: str | None,
    overrides: list[str] | None,
    announce: Path | None,
    lifeline: bool,
    debug: bool,
    trace_dir: Path | None = None,
) -> Launch:
    resolved = load_settings(settings or "alexnet", overrides=overrides or ())
    if trace_dir is None and settings is not None and settings.endswith(".toml"):
        trace_dir = trace_folder(Path(settings).parent)
    return Launch(resolved, announce, lifeline, debug, trace_dir)


def _say(text: str, *, quiet: bool) -> None:
    if not quiet:
        Console(stderr=True).print(text, soft_wrap=True, highlight=False)


def main() -> None:
    """The entry point: runs a command and turns every error into one line and an exit code."""
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
    except FourstageError as error:
        _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "fourstage"
            _fail(f"{error.format_message().rstrip('.')}; {command} --help lists what it takes", 2, debug)
        _fail(f"internal error: {error!r}; run again with --debug and report it", 1, debug)
    # Without click's standalone mode an Exit is a returned code.
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(ERROR_PREFIX + " ".join(message.splitlines()), file=sys.stderr)  # noqa: T201
    sys.exit(code)
