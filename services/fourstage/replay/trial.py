"""One image decoded in a process of its own: one that kills whoever decodes it is to be named, not died of."""

import signal
import subprocess
import sys

import numpy as np

from fourstage.augmenter.decode import DecoderName, make_decoder
from fourstage.errors import CorruptSampleError

_COMMAND = ["-m", __name__]


def why_not(jpeg: bytes, *, decoder: DecoderName, size: int) -> str:
    """Why an image cannot be decoded to ``size`` x ``size`` pixels; empty where it can."""
    command = [sys.executable, *_COMMAND, decoder, str(size)]
    done = subprocess.run(command, input=jpeg, capture_output=True, check=False)
    if done.returncode < 0:
        return f"it ends the process that decodes it ({signal.Signals(-done.returncode).name})"
    if done.returncode:
        return f"the process that decodes it ends with {done.returncode}"
    return done.stdout.decode("utf-8", "replace").strip()


def _try(jpeg: bytes, decoder: DecoderName, size: int) -> str:
    try:
        make_decoder(decoder)(memoryview(jpeg), np.empty((size, size, 3), np.uint8))
    except CorruptSampleError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.stdout.write(_try(sys.stdin.buffer.read(), sys.argv[1], int(sys.argv[2])))  # type: ignore[arg-type]  # a name
