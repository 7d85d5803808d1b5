"""Log lines of a process."""

import logging
import sys
from typing import TextIO

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


def escaped(text: str) -> str:
    """The same with every control character written out."""
    return text.translate(_ESCAPES)


class _OneLine(logging.Formatter):
    """What a peer calls itself neither begins a line of its own nor tells the terminal anything."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # The base class's name for it.
        record.message = escaped(record.message)
        return super().formatMessage(record)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what is standard error at that moment: a live view on the terminal puts lines above itself."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """The base class sets it once."""


def configure_logging(role: str, *, debug: bool = False) -> None:
    """Log lines of this process on standard error: time, role, level, text."""
    handler = _StandardError()
    formatter = _OneLine(f"%(asctime)s.%(msecs)03d {role} %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(formatter)
    logger = logging.getLogger("fourstage")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
