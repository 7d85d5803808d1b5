"""What a person sees of a run: a live view on a terminal, plain lines elsewhere, a table in the end."""

import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fourstage.store.progress import Progress as StoreProgress

_PLAIN_SECONDS = 10.0
_STALE_SECONDS = 10.0
"""A running trainer writes its status twice a second; checkpoints of large networks take a few."""
_BAR = 16
_STAGES = (
    ("load", "read from disk", "loaded"),
    ("transform", "decode, crop, reflect", "leased"),
    ("copy", "to the device", "arrived"),
    ("train", "", ""),
)


class Screen(Console):
    """A console that may go while a run goes on: a terminal that hangs up, a pipe whose reader leaves. From then on it
    shows nothing."""

    def on_broken_pipe(self) -> None:
        """The reader has left."""
        self.quiet = True

    def print(self, *objects: Any, **options: Any) -> None:
        """As ``Console.print``, while there is something to print on."""
        try:
            super().print(*objects, **options)
        except OSError:
            self.quiet = True


class LiveView:
    """Call with every new status."""

    def __init__(self, console: Screen) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._next = 0.0
        self._epoch = -1

    def __call__(self, status: dict[str, Any]) -> None:
        if self._live is not None:
            try:
                self._live.update(render(status))
            except OSError:
                self._console.quiet = True
            return
        now = time.monotonic()
        if now >= self._next or status["state"] not in ("running", "validating"):
            self._next = now + _PLAIN_SECONDS
            self._console.print(plain(status), soft_wrap=True, highlight=False, markup=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
            self._live.update(Text("starting loader, augmenters and trainer …"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.__exit__(kind, error, trace)


class StoreBar:
    """A progress bar with rate and time left; nothing with --json."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), TextColumn("{task.fields[left_out]}"), console=Console(stderr=True), disable=quiet,
        )  # fmt: skip
        self._task = self._progress.add_task(title, total=None, rate="", left_out="")
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def show(self, now: StoreProgress) -> None:
        seconds = time.monotonic() - self._began
        rate = f"{now.done / seconds:,.0f}/s" if seconds else ""
        left_out = f"{now.left_out} left out" if now.left_out else ""
        self._progress.update(self._task, total=now.total, completed=now.done, rate=rate, left_out=left_out)


def plain(status: dict[str, Any]) -> str:
    """One line for a log."""
    parts = [f"step {status['step']}/{status['steps']}", f"epoch {status['epoch']}"]
    if status["loss"] is not None:
        parts.append(f"loss {status['loss']:.4f}")
    if status["val"]:
        parts.append(f"val top-1 error {status['val']['top1_error']:.1%}")
    if status.get("corrupt"):
        parts.append(left_out(status["corrupt"]))
    parts += [f"{status['images_per_second']:,.0f} images/s", duration(status["seconds_left"]) + " left"]
    return ", ".join(parts) + f" | {status.get('failure') or status['bottleneck']}"


def render(status: dict[str, Any]) -> Group:
    """The live view: where the run stands, a line per stage, what it waits for."""
    done = status["step"] / status["steps"] if status["steps"] else 0.0
    running = status["state"] in ("running", "validating")
    left = f"  {duration(status['seconds_left'])} left" if running else ""
    head = Text.assemble(
        (f" {status['state']} ", "bold reverse"),
        f"  step {status['step']:,} of {status['steps']:,}  epoch {status['epoch']}  ",
        (_bar(done), "cyan"),
        f" {done:.0%}  {status['images_per_second']:,.0f} images/s{left}",
    )
    figures = Text("  ")
    if status["loss"] is not None:
        figures.append(f"loss {status['loss']:.4f}   learning rate {status['learning_rate']:g}")
    for split, name in (("train", "training"), ("val", "validation")):
        if rates := status[split]:
            figures.append(f"   {name} error: top-1 {rates['top1_error']:.1%}")
            if rates["top5_error"] is not None:
                figures.append(f", top-5 {rates['top5_error']:.1%}")
    if status.get("corrupt"):
        figures.append(f"   {left_out(status['corrupt'])}", "bold red")
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in ("stage", "busy", "", "no input", "no room", "batches"):
        table.add_column(title, no_wrap=True, justify="left" if title in ("stage", "") else "right")
    for name, _, queue in _STAGES:
        part = status["stages"][name]
        label = _augmenters(status) if name == "transform" else name
        table.add_row(
            label,
            f"{part['busy']:.0%}",
            Text(_bar(part["busy"]), style="green"),
            f"{part['wait_upstream']:.0%}",
            f"{part['wait_downstream']:.0%}",
            f"{status['queues'][queue]} of {status['window']}" if queue else "1",
        )
    failure = status.get("failure")
    sentence = Text.assemble("  ", (failure, "bold red") if failure else (status["bottleneck"], "bold yellow"))
    age = time.time() - status["written_at"]
    if running and age > _STALE_SECONDS:
        sentence.append(f"\n  nothing was heard of the trainer for {duration(age)}: is it still there?", "bold red")
    return Group(head, figures, table, sentence)


def _augmenters(status: dict[str, Any]) -> str:
    if status.get("decode") == "device":
        return "transform (trainer)"
    present, wanted = status["augmenters"], status["augmenters_wanted"]
    return f"transform x{present}" + (f" ({wanted} would do)" if wanted not in (0, present) else "")


def final_table(summary: dict[str, Any]) -> Table:
    """The end of a run."""
    table = Table(title=f"run {summary['state']}", show_header=False, title_justify="left")
    final, receipt = summary["final"], summary["receipt"]
    rows = [
        ("steps", f"{summary['steps']:,}"),
        ("images", f"{summary['images']:,} at {summary['images_per_second']:,.0f} a second"),
        ("time", f"{duration(summary['seconds'])}, the first batch after {summary['start_seconds']:.1f} s"),
    ]
    if final["loss"] is not None:
        rows.append((f"{final['split'] or 'last'} loss", f"{final['loss']:.4f}"))
    if final["top1_error"] is not None:
        rows.append((f"{final['split']} top-1 error", f"{final['top1_error']:.2%}"))
    if final["top5_error"] is not None:
        rows.append((f"{final['split']} top-5 error", f"{final['top5_error']:.2%}"))
    rows += [
        ("waiting for data", f"{summary['data_wait_fraction']:.1%} of the train stage's time"),
        ("bottleneck", summary["bottleneck"]),
        ("receipt", f"{receipt['digest']}, {receipt['delivered']:,} samples, each once per epoch"),
        (
            "repeated work",
            f"{receipt['redispatched']} leases given again, {receipt['duplicates_dropped']} copies dropped",
        ),
    ]
    if receipt["corrupt"]:
        rows.append(("left out", f"{left_out(receipt['corrupt'])}: the receipt names them"))
    for name, value in rows:
        table.add_row(name, value)
    return table


def left_out(samples: int) -> str:
    """Samples of a run that were not trained on, in every epoch again."""
    return f"{samples:,} sample{'s' if samples > 1 else ''} left out, which cannot be decoded"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _bar(share: float) -> str:
    filled = round(max(0.0, min(1.0, share)) * _BAR)
    return "━" * filled + "╌" * (_BAR - filled)
