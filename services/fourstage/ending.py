"""How a process ends: with an exit code, and where it failed with one line that says what and what to do.

Exit 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted. ``--debug`` adds the traceback.
"""

import atexit
import errno
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TextIO

from fourstage.errors import FourstageError, of_the_machine

ERROR_PREFIX = "fourstage: "
"""How the last line of a failed process begins."""
_NOBODY_READS = (errno.EPIPE, errno.EIO)
"""A reader that has left, a terminal that has hung up."""


def end_with(run: Callable[[], int], *, debug: bool) -> NoReturn:
    """Run to the end and leave with the code that it returns, or with that of its error."""
    # The first to be registered is the last to run.
    atexit.register(_hear_no_more)
    try:
        code = run()
    except FourstageError as error:
        code = error.exit_code
        _say(str(error), debug)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = 1
        _say(str(of_the_machine(error) or f"internal error: {error!r}; run again with --debug and report it"), debug)
    if not _say_the_rest() and code == 0:
        code = 1
    # The interpreter would look for cycles among all of torch's objects once more before it drops them: a second.
    gc.freeze()
    sys.exit(code)


def _hear_no_more() -> None:
    """What is to be said is said: a late Ctrl-C would only put another exit code in place of the documented one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def say(text: str) -> None:
    """Print on standard output. Raises FourstageError where that is a file that takes no more."""
    try:
        print(text, flush=True)  # noqa: T201 - what was asked for
    except OSError as error:
        _drop(sys.stdout)
        if error.errno not in _NOBODY_READS:
            raise FourstageError(
                f"cannot write to standard output: {error.strerror}", hint="free space there"
            ) from error


def _say(message: str, debug: bool) -> None:
    with suppress(OSError):
        if debug:
            traceback.print_exc()
        print(ERROR_PREFIX + " ".join(message.splitlines()), file=sys.stderr)  # noqa: T201


def _say_the_rest() -> bool:
    """Say what is left to be said; False where standard output took no more of it.

    Where nobody can read it the interpreter would end with 120 for it.
    """
    said = True
    for stream in (sys.stdout, sys.stderr):
        # Of a process that was started without it.
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError as error:
            _drop(stream)
            if stream is sys.stdout and error.errno not in _NOBODY_READS:
                said = False
                _say(f"cannot write to standard output: {error.strerror}; free space there", debug=False)
    return said


def _drop(stream: TextIO) -> None:
    """What it still holds, and what comes, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
