"""A batch as a sheet of its crops, each with what it is and how it was drawn.

Pillow alone, pixel for pixel: a figure library would resample the crops, and machines that only transform have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fourstage.errors import FourstageError
from fourstage.replay.compare import Sample

_INK, _QUIET, _ACCENT = "#222222", "#6b6b6b", "#D55E00"
"""The colours of ``figures/style.py``, which needs matplotlib."""
_WIDE, _NARROW, _MOST = 192, 176, 448
"""Pixels: small crops are enlarged up to this, a column is at least this wide, larger crops are shrunk to this."""
_COLUMNS = 8
_MARGIN, _GAP = 24, 16
_LINE, _CAPTION_LINES = 16, 5
_TITLE, _TEXT, _SMALL = 22, 15, 13
"""Heights of letters."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies on a sheet, in pixels."""

    count: int
    crop: int
    heading: int
    """Lines above the crops, besides the title."""

    @property
    def side(self) -> int:
        """Width and height of a crop as shown: enlarged by whole numbers only."""
        return min(_MOST, self.crop * max(1, _WIDE // self.crop))

    @property
    def columns(self) -> int:
        return min(_COLUMNS, self.count)

    @property
    def top(self) -> int:
        """Where the first row of crops begins."""
        return _MARGIN + _TITLE + 12 + self.heading * (_LINE + 4) + _GAP

    @property
    def size(self) -> tuple[int, int]:
        """Of the sheet: width, height."""
        lines = -(-self.count // self.columns)
        # A narrow sheet still has room for its heading.
        width = max(2 * _MARGIN + self.columns * self._across - _GAP, 900)
        return width, self.top + lines * self._down - _GAP + _MARGIN

    def corner(self, number: int) -> tuple[int, int]:
        """Left and top of a crop."""
        line, column = divmod(number, self.columns)
        return _MARGIN + column * self._across, self.top + line * self._down

    @property
    def text_width(self) -> int:
        """Room for the text below a crop."""
        return self._across - _GAP

    @property
    def _across(self) -> int:
        return max(self.side, _NARROW) + _GAP

    @property
    def _down(self) -> int:
        return self.side + 6 + _CAPTION_LINES * _LINE + 3 + _GAP


def shifted(pixels: NDArray[np.uint8], shifts: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Crops (rows, crop, crop, 3) with the colour shift of each (rows, 3) added, rounded and clipped to 0..255."""
    values: NDArray[np.float32] = pixels + shifts[:, None, None, :]
    return values.round().clip(0, 255).astype(np.uint8)


def draw_sheet(
    title: str, heading: Sequence[str], first_row: int, samples: Sequence[Sample], crops: NDArray[np.uint8]
) -> Image.Image:
    """The sheet. crops: (rows, crop, crop, 3) of the samples, at least one, as they are to be seen."""
    layout = Layout(len(samples), crops.shape[1], len(heading))
    sheet = Image.new("RGB", layout.size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, _INK, ImageFont.load_default(_TITLE))
    text, small = ImageFont.load_default(_TEXT), ImageFont.load_default(_SMALL)
    for number, line in enumerate(heading):
        draw.text((_MARGIN, _MARGIN + _TITLE + 12 + number * (_LINE + 4)), line, _QUIET, text)
    for number, (sample, crop) in enumerate(zip(samples, crops, strict=True)):
        left, top = layout.corner(number)
        sheet.paste(_at_size(crop, layout.side), (left, top))
        y = top + layout.side + 6
        draw.text((left, y), _fitting(sample.label_name, text, layout.text_width), _ACCENT, text)
        y += _LINE + 3
        for line in (
            _fitting(sample.key, small, layout.text_width),
            f"row {first_row + number}, position {sample.position}",
            f"crop at {sample.offsets[0]}, {sample.offsets[1]}" + (", reflected" if sample.reflected else ""),
            "left out" if sample.left_out else _shift(sample),
        ):
            draw.text((left, y), line, _QUIET, small)
            y += _LINE
    return sheet


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises FourstageError where the disk does not take it."""
    temporary = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(temporary, "PNG")
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FourstageError(f"cannot write {path}: {error.strerror}", hint="name another --out") from error


def _at_size(crop: NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(crop)
    resampling = Image.Resampling.NEAREST if side >= image.width else Image.Resampling.BOX
    return image.resize((side, side), resampling)


def _shift(sample: Sample) -> str:
    return "shift " + "  ".join(f"{value:+.1f}" for value in sample.shift) if any(sample.shift) else "no shift"


def _fitting(name: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> str:
    """A name, its beginning cut off where it is too long: what tells keys apart is their end."""
    if font.getlength(name) <= width:
        return name
    return next((cut for start in range(1, len(name)) if font.getlength(cut := "…" + name[start:]) <= width), name[-1:])
