"""Log lines of a process."""

import logging
import sys
from typing import TextIO


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
    formatter = logging.Formatter(f"%(asctime)s.%(msecs)03d {role} %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(formatter)
    logger = logging.getLogger("fourstage")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
