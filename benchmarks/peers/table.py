"""From measurements to a table: medians, spreads and ratios, without a clock or a process."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measurement:
    """One round of one system."""

    images: int
    seconds: float
    cpu_seconds: float | None
    """User and system time of all its processes; None where that was not measured."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


@dataclass(frozen=True, slots=True)
class Row:
    """One system's rounds."""

    name: str
    rate: float
    """Images per second, median."""

    least: float
    most: float
    cpu_microseconds: float | None
    """Processor time per image, median; None where that was not measured."""

    of_raw: float | None
    """Its median rate by that of ``raw``; None where that was not measured."""

    of_fourstage: float | None


def rotated(names: Sequence[str], round_number: int) -> list[str]:
    """The order of a round, counted from 0: each system comes first once."""
    first = round_number % len(names)
    return [*names[first:], *names[:first]]


def rows(rounds: Mapping[str, Sequence[Measurement]]) -> list[Row]:
    """The table, fastest first; every system has at least one round."""
    medians = {name: statistics.median(one.rate for one in measured) for name, measured in rounds.items()}

    def ratio(name: str, reference: str) -> float | None:
        return medians[name] / medians[reference] if reference in medians else None

    table = [
        Row(
            name=name,
            rate=medians[name],
            least=min(one.rate for one in measured),
            most=max(one.rate for one in measured),
            cpu_microseconds=_cpu_microseconds(measured),
            of_raw=ratio(name, "raw"),
            of_fourstage=ratio(name, "fourstage"),
        )
        for name, measured in rounds.items()
    ]
    return sorted(table, key=lambda row: row.rate, reverse=True)


def rendered(table: Sequence[Row], descriptions: Mapping[str, str]) -> str:
    """The table as Markdown."""
    lines = [
        "| system | images/s, median | least to most | of raw | of fourstage | CPU µs an image |",
        "|---|---|---|---|---|---|",
    ]
    for row in table:
        ratios = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in (row.of_raw, row.of_fourstage))
        cpu = "" if row.cpu_microseconds is None else f"{row.cpu_microseconds:.0f}"
        lines.append(
            f"| {descriptions[row.name]} (`{row.name}`) | {row.rate:,.0f} | {row.least:,.0f} to {row.most:,.0f} "
            f"| {ratios} | {cpu} |"
        )
    return "\n".join(lines)


def _cpu_microseconds(measured: Sequence[Measurement]) -> float | None:
    each = [1e6 * one.cpu_seconds / one.images for one in measured if one.cpu_seconds is not None]
    return statistics.median(each) if each else None
