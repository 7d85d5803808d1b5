"""Stores: made once, checked any time."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fourstage.cli.shared import JsonOption
from fourstage.errors import FourstageError
from fourstage.view import StoreBar


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


def verify(
    store: Annotated[Path, typer.Argument(help="Directory made by fourstage prepare.")],
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every image too, and name each that cannot be; takes a core long.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Read every byte of a store and compare it with its index."""
    from dataclasses import asdict

    from fourstage.store.verify import verify as verify_store

    with StoreBar("verifying", quiet=json_) as progress:
        report = verify_store(store, decode=decode, progress=progress.show)
    if json_:
        typer.echo(json.dumps(asdict(report), default=str))
    else:
        for problem in report.problems:
            typer.echo(problem)
        typer.echo(f"{report.images:,} images, {len(report.problems)} problems")
    if report.problems:
        raise FourstageError(f"{store} has {len(report.problems)} problems", hint="prepare it again")
