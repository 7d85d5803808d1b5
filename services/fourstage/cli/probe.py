"""What this machine gives, before the first run."""

import json
import math
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fourstage.cli.shared import JsonOption, SetOption, StoreOption
from fourstage.errors import SettingsError
from fourstage.probe import plan, words
from fourstage.resolve import load_settings

_MOST_SECONDS = 3600.0


def probe(
    store: StoreOption,
    recipe: Annotated[
        str, typer.Option(help="Name or TOML file of a recipe: crop, batch and slots are its.")
    ] = "alexnet",
    rate: Annotated[float | None, typer.Option(help="Images per second that training should take.")] = None,
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 30.0,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure this machine: what a core and the disk give, augmenters for a rate, what gives out first."""
    from fourstage.probe.run import STEPS
    from fourstage.probe.run import probe as measure

    if rate is not None and not (0.0 < rate < math.inf):
        raise SettingsError(f"--rate {rate:g}", hint="images per second, for example --rate 5000")
    if not 1.0 <= seconds <= _MOST_SECONDS:
        raise SettingsError(f"--seconds {seconds:g}", hint=f"from 1 to {_MOST_SECONDS:.0f}")
    settings = load_settings(recipe, overrides=set_ or [])
    began = time.monotonic()
    with Progress(
        TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), disable=json_, transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task("", total=STEPS)
        measured = measure(
            store, settings, seconds,
            lambda number, what: progress.update(task, completed=number, description=what),
        )  # fmt: skip
    concluded = plan.conclude(measured, rate)
    if json_:
        typer.echo(json.dumps(_document(measured, concluded) | {"seconds": round(time.monotonic() - began, 3)}))
        return
    console = Console()
    console.print(words.paragraph(measured, concluded), highlight=False, markup=False)
    for warning in words.warnings(measured):
        console.print(f"Warning: {warning}", style="yellow", highlight=False, markup=False)
    console.print(_figures(measured))
    console.print(_limits(measured, concluded, rate))


def _document(measured: plan.Measured, concluded: plan.Plan) -> dict[str, Any]:
    return {
        "measured": asdict(measured)
        | {
            "decode_share": measured.decode_share,
            "scaling": measured.scaling,
            "augmenters_in_memory": measured.augmenters_in_memory,
            "network_bytes": measured.network_bytes,
        },
        "limits": [asdict(limit) for limit in concluded.limits],
        "needs": [asdict(need) for need in concluded.needs],
        "first": asdict(concluded.first),
        "cold_is_cold": measured.cold_is_cold,
        "fits_in_memory": measured.fits_in_memory,
        "busy": measured.busy,
        "words": words.paragraph(measured, concluded),
        "warnings": words.warnings(measured),
    }


def _figures(measured: plan.Measured) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in ("measured", "median", "windows", ""):
        table.add_column(title, justify="right" if title in ("median", "windows") else "left")
    for row in words.rows(measured):
        table.add_row(*row)
    return table


def _limits(measured: plan.Measured, concluded: plan.Plan, rate: float | None) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in ("gives out", "at") if rate is None else ("gives out", "at", "carries it"):
        table.add_column(title, justify="right" if title == "at" else "left")
    for row in words.limit_rows(measured, concluded, rate):
        table.add_row(*(row if rate is not None else row[:2]))
    return table
