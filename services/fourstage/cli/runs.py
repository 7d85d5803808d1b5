"""Runs on this machine: begun, looked at, changed while they go on."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fourstage import rundir
from fourstage.by_hand import RATE, SCALE
from fourstage.cli.shared import DebugOption, JsonOption, RunDirOption, SetOption, StoreOption, first_augmenters, say
from fourstage.engine.foreground import free_run_directory, run_in_foreground
from fourstage.engine.lock import require_running
from fourstage.errors import FourstageError, SettingsError
from fourstage.logs import escaped
from fourstage.resolve import load_settings, read_toml
from fourstage.store import open_store
from fourstage.store.manifest import MANIFEST_NAME
from fourstage.trace import await_trace, request_trace
from fourstage.view import StoreBar, render
from fourstage.wire.addresses import AUTO, is_local

_TRACE_PATIENCE_SECONDS = 15.0
"""Steps may take seconds, and the trainer looks for requests between them."""


def run(
    store: StoreOption,
    run_dir: RunDirOption,
    recipe: Annotated[str | None, typer.Option(help="Name of a recipe, or a TOML file.")] = None,
    augmenters: Annotated[
        str,
        typer.Option(
            help="Number of augmenters; auto: as many as the trainer needs; auto:N: the same, N to begin with."
        ),
    ] = "auto",
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
    if settings.receiver != AUTO and not is_local(settings.receiver):
        raise SettingsError(
            f"receiver = {settings.receiver!r}: the processes of fourstage run never leave this machine",
            hint="leave it out; fourstage loader, augmenter and trainer, with keys, run on several",
        )
    count, auto = first_augmenters(augmenters, settings)
    code = run_in_foreground(
        settings, store=store, run_dir=run_dir, augmenters=count, auto=auto, resume=resume, as_json=json_, debug=debug
    )
    raise typer.Exit(code)


def demo(
    store: Annotated[Path, typer.Option(help="Where the demo's store is made.")] = Path("stores/demo"),
    run_dir: Annotated[Path, typer.Option(help="Where the run is written; -2, -3 … is added where one is.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the photographs and of the training.")] = 0,
    only_store: Annotated[
        bool, typer.Option("--only-store", help="Make the store where there is none; no run.")
    ] = False,
    json_: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw photographs of ten classes, store them, and learn them through all four stages."""
    if missing := _missing_splits(store):
        _make_demo_store(store, seed, missing, quiet=json_)
    if only_store:
        splits = {name: len(split) for name, split in open_store(store).splits.items()}
        counts = ", ".join(f"{name} {images:,}" for name, images in sorted(splits.items()))
        say(f"the store in {store} has {counts} images", quiet=json_)
        if json_:
            typer.echo(json.dumps({"store": os.fspath(store), "splits": splits}))
        raise typer.Exit
    settings = load_settings("demo", flags={"seed": seed, "trace": True})
    count, _ = first_augmenters("auto" if settings.decode == "device" else "1", settings)
    run_dir = free_run_directory(run_dir)
    say(f"training the four-layer net on {store}; the run is written to {run_dir}", quiet=json_)
    code = run_in_foreground(
        settings, store=store, run_dir=run_dir, augmenters=count, resume=False, as_json=json_, debug=debug
    )
    raise typer.Exit(code)


def _missing_splits(store: Path) -> tuple[str, ...]:
    """What the demo's store lacks: everything, or the second split where the first was made and then interrupted."""
    if not (store / MANIFEST_NAME).is_file():
        return ("train", "val")
    opened = open_store(store)
    if "val" in opened.splits:
        return ()
    from fourstage.demo import CLASSES

    # Any other store is somebody's own and stays as it is.
    return ("val",) if tuple(opened.classes) == tuple(CLASSES) else ()


def _make_demo_store(store: Path, seed: int, splits: Sequence[str], *, quiet: bool) -> None:
    from fourstage.demo import write_photographs
    from fourstage.store.prepare import prepare as prepare_store

    per_class = {"train": 400, "val": 50}
    count = sum(10 * per_class[split] for split in splits)
    with tempfile.TemporaryDirectory(prefix="fourstage-photographs-") as folder:
        say(f"drawing {count:,} photographs of ten classes, 120 to 256 pixels wide", quiet=quiet)
        photographs = Path(folder)
        wanted = {split: number if split in splits else 0 for split, number in per_class.items()}
        write_photographs(photographs, seed=seed, train_per_class=wanted["train"], validation_per_class=wanted["val"])
        for split in splits:
            with StoreBar(f"preparing {split}", quiet=quiet) as progress:
                prepare_store(photographs / split, store, split=split, size=36, progress=progress.show)


def status(run_dir: RunDirOption = Path(), json_: JsonOption = False) -> None:
    """Where a run stands and what it waits for."""
    values = rundir.read_json(run_dir / rundir.STATUS)
    if json_:
        typer.echo(json.dumps(values))
        return
    try:
        view = render(_printable(values))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        path = run_dir / rundir.STATUS
        raise FourstageError(f"{path} is no status that this version has written: {error!r}") from error
    Console().print(view)


def _printable(value: Any) -> Any:
    """The same without control characters: peers' names are among it, and a terminal obeys some of them."""
    if isinstance(value, dict):
        return {_printable(name): _printable(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_printable(entry) for entry in value]
    return escaped(value) if isinstance(value, str) else value


def trace(
    run_dir: RunDirOption,
    seconds: Annotated[float, typer.Option(help="How long, from now on.")] = 10.0,
) -> None:
    """Write the timeline of a run that goes on: the next seconds of all four stages, for ui.perfetto.dev."""
    path = request_trace(run_dir, seconds)
    say(f"tracing {run_dir} for {seconds:g} s", quiet=False)
    await_trace(run_dir, _TRACE_PATIENCE_SECONDS)
    typer.echo(f"{path}: open it at https://ui.perfetto.dev and follow the arrows of a batch")


def rate(
    value: Annotated[float, typer.Argument(help="The weights' new learning rate; later drops divide it.")],
    run_dir: RunDirOption,
) -> None:
    """Set the learning rate of a run by hand, while it trains or before it is resumed."""
    RATE.ask(run_dir, value)
    typer.echo(f"rate {value:g} is asked of {run_dir}: its trainer takes it within a second")


def scale(
    number: Annotated[str, typer.Argument(metavar="N", help="Augmenters, or auto: as many as the trainer needs.")],
    run_dir: RunDirOption,
) -> None:
    """Change the number of augmenters while a run goes on here; the batches stay the same."""
    require_running(run_dir)
    if read_toml(run_dir / rundir.SETTINGS).get("decode") == "device":
        raise SettingsError(f"the trainer of {run_dir} decodes itself", hint="augmenters would be given nothing to do")
    asked = SCALE.ask(run_dir, number)
    words = "as many augmenters as its trainer needs" if asked == "auto" else f"augmenters: {asked}"
    typer.echo(f"{words}, asked of {run_dir}: its engine does it within a second")
