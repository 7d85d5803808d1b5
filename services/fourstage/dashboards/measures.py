"""Values as Grafana writes them: its units in a few words."""

import math

_TIMES = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BINARY = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_DECIMAL = ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s"))


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit; an empty text for what is no number."""
    if not math.isfinite(value):
        return ""
    match unit:
        case "percentunit":
            return f"{_digits(100 * value, decimals)}%"
        case "s":
            return _scaled(value, _TIMES, decimals)
        case "bytes":
            return _scaled(value, _BINARY, decimals)
        case "Bps":
            return _scaled(value, _DECIMAL, decimals)
        case "locale":
            return f"{value:,.{decimals or 0}f}"
        case "sci":
            return f"{value:.4g}"
    return f"{_digits(value, decimals)}{_word(unit)}"


def scale(value: float, unit: str) -> float:
    """The size of the unit that a value is written in: round numbers of it make good ticks."""
    table = {"s": _TIMES, "bytes": _BINARY, "Bps": _DECIMAL}.get(unit, ((1.0, ""),))
    return next((size for size, _ in table if value >= size), 1.0)


def _word(unit: str) -> str:
    return f" {unit.removeprefix('suffix:').strip()}" if unit.startswith("suffix:") else ""


def _scaled(value: float, scale: tuple[tuple[float, str], ...], decimals: int | None) -> str:
    for size, name in scale:
        if abs(value) >= size:
            return f"{_digits(value / size, decimals)} {name}"
    return "0" if value == 0 else f"{_digits(value / scale[-1][0], decimals)} {scale[-1][1]}"


def _digits(value: float, decimals: int | None) -> str:
    """As many as were asked for, else three that say something."""
    if decimals is None:
        text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return "0" if text in ("-0", "0") else text
    return f"{value:,.{decimals}f}"
