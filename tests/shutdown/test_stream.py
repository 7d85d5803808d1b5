"""BatchStream in somebody's own loop, however that ends: no process, socket, folder or memory of it is left."""

import signal
from pathlib import Path

import pytest

from tests.pipeline.harness import CROP, eventually
from tests.shutdown.traces import Command

BEGIN = f"""
import gc, os, sys, time
from fourstage import BatchStream
stream = BatchStream(sys.argv[1], recipe="drain", batch_size=6, workers=1, settings={{"augmenter.crop": {CROP}}})
batches = iter(stream)
next(batches)
"""
ENDS = {
    "an exception": (1, "raise ValueError('the loop failed')"),
    "an exception amid a with": (1, "with stream:\n    raise ValueError('the loop failed')"),
    "a break and close": (0, "for batch in stream:\n    break\nstream.close()"),
    "a break and nothing": (0, "for batch in stream:\n    break"),
    "del": (0, "del stream, batches\ngc.collect()\nassert not os.listdir(os.environ['TMPDIR'])"),
    "the end of the program": (0, ""),
    "sys.exit": (3, "sys.exit(3)"),
    "os._exit": (4, "os._exit(4)"),
    "a forked child that ends": (
        0,
        (
            "child = os.fork()\nif child == 0:\n    del stream, batches\n    gc.collect()\n    sys.exit(0)\n"
            "assert os.waitpid(child, 0)[1] == 0\nnext(batches)\nstream.close()"
        ),
    ),
    "a forked child that outlives it": (0, "if os.fork() == 0:\n    time.sleep(1)\n    os._exit(0)\nstream.close()"),
    "a cycle": (0, "loop = [stream]\nloop.append(loop)\ndel stream, batches, loop\ngc.collect()"),
}
FAST = ["an exception", "os._exit", "a forked child that ends"]


@pytest.mark.parametrize("how", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ENDS])
def test_a_loop_that_ends_leaves_nothing(store: Path, short: Path, how: str) -> None:
    code, end = ENDS[how]
    command = Command(["-c", BEGIN + end, str(store)], short / "loop")
    try:
        assert command.end(120.0) == code, command.said
        assert command.left() == []
    finally:
        command.kill()


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGINT], -signal.SIGINT),
        pytest.param([signal.SIGINT, signal.SIGINT], -signal.SIGINT, marks=pytest.mark.slow),
        pytest.param([signal.SIGTERM], -signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param([signal.SIGHUP], -signal.SIGHUP, marks=pytest.mark.slow),
        ([signal.SIGKILL], -signal.SIGKILL),
    ],
)
def test_a_loop_that_is_stopped_leaves_nothing(store: Path, short: Path, numbers: list[int], code: int) -> None:
    program = BEGIN + "print('ready', flush=True)\nwhile True:\n    for batch in stream:\n        time.sleep(0.01)\n"
    command = Command(["-c", program, str(store)], short / "loop")
    try:
        eventually(lambda: "ready" in command.said or command.process.poll() is not None, "a first batch", 60.0)
        for number in numbers:
            command.signal(number)
        assert command.end(60.0) == code, command.said
        assert command.left() == []
    finally:
        command.kill()
