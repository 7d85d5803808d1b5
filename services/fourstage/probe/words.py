"""Conclusions in words: sentences, and the rows of a small table."""

import math
from collections.abc import Iterator

from fourstage.probe.plan import LimitName, Measured, Need, Plan, Spread

_CALLED: dict[LimitName, str] = {
    "cores": "cores",
    "disk": "the disk",
    "page cache": "reading from the page cache",
    "memory": "memory for arenas",
    "loopback": "loopback",
    "network": "the network of 10 Gbit/s",
}


def paragraph(measured: Measured, plan: Plan) -> str:
    """What was measured and what follows, as sentences."""
    return " ".join([*_found(measured), *_needs(measured, plan), _first(plan)])


def warnings(measured: Measured) -> list[str]:
    """What makes the figures doubtful."""
    told = []
    if measured.busy:
        told.append(
            f"others used {measured.others:.1f} of {measured.machine_cores} cores meanwhile: the figures are too low "
            f"(by its CPU time an image takes {1e6 * measured.image_cpu_seconds:,.0f} µs)"
        )
    if measured.uneven:
        told.append(
            f"{measured.cores} cores made {measured.scaling:.2f} of {measured.cores} times one: something held the one "
            "up; measure again, or longer"
        )
    if not measured.cold_is_cold:
        told.append(
            f"the kernel kept {measured.cold.resident:.0%} of the store's pages in memory (tmpfs, another process that "
            "has them mapped, files of another user): the cold figure says nothing of the disk"
        )
    return told


def rows(measured: Measured) -> list[tuple[str, str, str, str]]:
    """Name, median, lowest and highest, what it means; for each figure."""
    work = measured.work

    def row(name: str, values: Spread, scale: float, unit: str, means: str) -> tuple[str, str, str, str]:
        low, high = (_figure(scale * value) for value in (values.low, values.high))
        return name, f"{_figure(scale * values.median)} {unit}", f"{low} to {high}", means

    per_second, cold = "images/s", "from the disk" if measured.cold_is_cold else "not the disk: see the warning"
    of_disk, of_cache = (_megabytes(reading.rate, work.jpeg_bytes) for reading in (measured.cold, measured.warm))
    copied = f"{_rate(measured.copy.median / work.pixel_bytes)} images/s"
    arenas = f"{measured.augmenters_in_memory:,} augmenters of {_figure(work.arena_bytes / 1e6)} MB"
    return [
        row("transform, one core", measured.image_seconds, 1e6, "µs/image", f"{_rate(1 / _one(measured))} images/s"),
        row("decoder alone", measured.decode_seconds, 1e6, "µs/image", f"{measured.decode_share:.0%} of it"),
        row(f"transform, {_cores(measured)}", measured.together, 1, per_second, f"scaling {measured.scaling:.2f}"),
        row("reading, cold", measured.cold.rate, 1, per_second, f"{of_disk}, {cold}"),
        row("reading, page cache", measured.warm.rate, 1, per_second, of_cache),
        row("copy, fresh arena", measured.first_touch, 1e-9, "GB/s", "first touch"),
        row("copy, touched arena", measured.copy, 1e-9, "GB/s", copied),
        row("loopback, inline", measured.loopback, 1, per_second, _megabytes(measured.loopback, work.pixel_bytes)),
        ("memory, available", f"{_figure(measured.available_bytes / 1e9)} GB", "", arenas),
    ]  # fmt: skip


def limit_rows(measured: Measured, plan: Plan, rate: float | None) -> list[tuple[str, str, str]]:
    """Name, rate, whether it carries what was asked for; for each limit, the lowest first."""
    notes: dict[LimitName, str] = {
        "cores": f", {measured.cores}, the loader's reading included",
        "disk": ", in the first epoch" if measured.fits_in_memory else "",
        "loopback": "" if measured.work.inline else ", if inline",
        "network": f", 10 Gbit/s, {measured.network_bytes:,.0f} bytes an image"
        + ("" if measured.work.inline else ", if inline"),
    }
    if not measured.cold_is_cold:
        notes["disk"] = ", not known: see the warning"
    return [
        (
            limit.name + notes.get(limit.name, ""),
            f"{_rate(limit.rate)} images/s",
            "" if rate is None else "yes" if rate <= limit.rate else "no",
        )
        for limit in plan.limits
    ]


def _found(measured: Measured) -> Iterator[str]:
    crop, micros = measured.work.crop, 1e6 * _one(measured)
    yield (
        f"One core makes {_rate(1 / _one(measured))} images/s of {crop}x{crop} ({_figure(micros)} µs each, "
        f"{measured.decode_share:.0%} of it decoding)"
        + (
            f"; {measured.cores} cores together {_rate(measured.together.median)}, {measured.scaling:.2f} of "
            f"{measured.cores} times one."
            if measured.cores > 1
            else "."
        )
    )
    cold, warm = _rate(measured.cold.rate.median), _rate(measured.warm.rate.median)
    if measured.cold_is_cold:
        yield f"The disk gives {cold} images/s cold, {warm} from the page cache."
    else:
        yield f"The page cache gives {warm} images/s; what the disk gives is not known."


def _needs(measured: Measured, plan: Plan) -> Iterator[str]:
    first, *others = plan.needs
    told = [f"To feed {_rate(first.rate)} images/s take {_augmenters(measured, first)}"]
    told += [f"{_rate(need.rate)}: {_augmenters(measured, need)}" for need in others]
    yield "; ".join(told) + "."
    if others:
        return
    missing = [_CALLED[limit.name] for limit in plan.counting if limit.rate < first.rate]
    if missing:
        yield f"This machine alone does not carry that: it takes more of {' and of '.join(missing)}."
    if measured.cold_is_cold and measured.fits_in_memory and measured.cold.rate.median < first.rate:
        yield "The first epoch comes from the disk and is slower; later ones stay in memory."


def _augmenters(measured: Measured, need: Need) -> str:
    plural = "" if need.augmenters == 1 else "s"
    beyond = "" if need.enough_cores else f", more than the {_cores(measured)} here"
    return f"{need.augmenters:,} augmenter{plural} ({need.cores_at_work:.1f} cores at work{beyond})"


def _first(plan: Plan) -> str:
    first, *later = plan.counting
    told = f"First to give out: {_CALLED[first.name]} at {_rate(first.rate)} images/s"
    return told + (f"; next: {_CALLED[later[0].name]} at {_rate(later[0].rate)}." if later else ".")


def _one(measured: Measured) -> float:
    return measured.image_seconds.median


def _cores(measured: Measured) -> str:
    return f"{measured.cores} core{'' if measured.cores == 1 else 's'}"


def _megabytes(rate: Spread, of_image: float) -> str:
    return f"{_figure(rate.median * of_image / 1e6)} MB/s"


def _rate(value: float) -> str:
    """Three digits: the fourth is noise."""
    if value < 1.0:
        return f"{value:.2g}"
    digits = 2 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(0, digits)}f}" if value < 10 else f"{round(value, digits):,.0f}"


def _figure(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
