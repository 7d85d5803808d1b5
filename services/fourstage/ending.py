"""How a process ends: with an exit code, and where it failed with one line that says what and what to do.

Exit 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted. ``--debug`` adds the traceback.
"""

import atexit
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from fourstage.errors import FourstageError, of_the_machine

ERROR_PREFIX = "fourstage: "
"""How the last line of a failed process begins."""


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
    _let_go_of_output()
    # The interpreter would look for cycles among all of torch's objects once more before it drops them: a second.
    gc.freeze()
    sys.exit(code)


def _hear_no_more() -> None:
    """What is to be said is said: a late Ctrl-C would only put another exit code in place of the documented one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _say(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    with suppress(OSError):
        print(ERROR_PREFIX + " ".join(message.splitlines()), file=sys.stderr)  # noqa: T201


def _let_go_of_output() -> None:
    """Say what is left to be said. Where nobody can read it any more the interpreter would end with 120 for it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
