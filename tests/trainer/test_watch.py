"""A trainer that dies, fails or is told to stop is noticed by the others."""

import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from fourstage.process import StopFlag
from fourstage.trainer.watch import SILENCE_SECONDS, Sightings
from tests.pipeline.harness import eventually

PROGRAM = """
import os, sys, time
from fourstage.errors import FourstageError, PeerLostError
from fourstage.process import StopFlag
from fourstage.trainer.watch import Watch
rank, world, plan = int(sys.argv[1]), 3, sys.argv[2]
stop = StopFlag()
watch = Watch.of_environment(rank, world, stop)
print("up", flush=True)
if plan == "fails":
    sys.stdin.readline()
    watch.leave(FourstageError("out of luck"))
elif plan == "leaves":
    watch.leave(None)
elif plan == "stops":
    sys.stdin.readline()
    stop.set("told to")
    stop.wait(60)
    time.sleep(2)
    watch.leave(None)
elif plan == "calls":
    try:
        with watch:
            sys.stdin.readline()
            raise RuntimeError("connection closed by peer")
    except PeerLostError as error:
        watch.leave(error)
        print(error)
else:
    stop.wait(60)
    print("stopped:", stop.reason, flush=True)
    watch.leave(None)
"""


class Trio:
    """Three processes around one store."""

    def __init__(self, stack: ExitStack, *plans: str) -> None:
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port), "PATH": ""}
        self.members = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(rank), plan], env=environment, text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for rank, plan in enumerate(plans)
        ]  # fmt: skip
        for member in self.members:
            stack.enter_context(member)
            stack.callback(member.kill)
        for member in self.members:
            assert member.stdout is not None
            assert member.stdout.readline() == "up\n"

    def go(self, rank: int) -> None:
        stdin = self.members[rank].stdin
        assert stdin is not None
        stdin.write("\n")

    def end(self, rank: int) -> tuple[int, str]:
        out, error = self.members[rank].communicate(timeout=60)
        return self.members[rank].returncode, out + error


def test_a_killed_trainer_ends_those_that_hang_with_its_name() -> None:
    with ExitStack() as stack:
        trio = Trio(stack, "waits", "waits", "waits")
        trio.members[1].send_signal(signal.SIGKILL)
        for rank in (0, 2):
            code, words = trio.end(rank)
            assert code == 1
            assert "fourstage: trainer 1 of 3 is gone" in words
            assert "--resume" in words


def test_a_collective_call_that_fails_waits_for_the_reason() -> None:
    with ExitStack() as stack:
        trio = Trio(stack, "calls", "fails", "leaves")
        assert trio.end(2)[0] == 0
        trio.go(0)
        trio.go(1)
        code, words = trio.end(0)
        assert code == 0
        assert "trainer 1 failed: out of luck" in words


def test_one_that_is_told_to_stop_tells_the_others() -> None:
    with ExitStack() as stack:
        trio = Trio(stack, "waits", "stops", "waits")
        trio.go(1)
        for rank in (0, 2):
            assert trio.end(rank) == (0, "stopped: told to\n")


@given(st.lists(st.tuples(st.integers(1, 2), st.floats(0.0, SILENCE_SECONDS - 0.01)), min_size=1, max_size=30))
def test_whoever_keeps_saying_something_new_is_not_lost(beats: list[tuple[int, float]]) -> None:
    sightings, now = Sightings(0, 3, 0.0), 0.0
    for number, (quiet, gap) in enumerate(beats):
        now += gap / 2
        sightings.see(dict.fromkeys((1, 2), f"beat {number}"), now)
        now += gap / 2
        sightings.see({quiet: f"beat {number}"}, now)
        assert sightings.lost(now) is None


def test_silence_is_death_but_a_goodbye_is_not() -> None:
    sightings = Sightings(0, 3, 0.0)
    sightings.see({1: "left", 2: "beat 1"}, 1.0)
    assert sightings.lost(1.0 + SILENCE_SECONDS) is None
    assert "trainer 2 of 3" in str(sightings.lost(1.1 + SILENCE_SECONDS))


def test_a_failure_is_told_at_once_in_its_own_words() -> None:
    sightings = Sightings(1, 2, 0.0)
    sightings.see({0: "failed disk full"}, 0.5)
    assert sightings.lost(0.5) == "trainer 0 failed: disk full"


def test_the_flag_of_this_process_is_set_by_the_others_word() -> None:
    from fourstage.trainer.watch import Watch

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    stop = StopFlag()
    watch = Watch(store, 0, 2, stop)
    store.set("stop", "SIGTERM")
    eventually(lambda: bool(stop), "the flag")
    watch.leave(None)
    assert stop.reason == "SIGTERM"
    assert store.get("0") == b"left"


@pytest.mark.parametrize("words", ["", "left"])
def test_a_trainer_still_importing_its_libraries_is_given_time(words: str) -> None:
    sightings = Sightings(0, 2, 0.0)
    if words:
        sightings.see({1: words}, 1.0)
    assert sightings.lost(SILENCE_SECONDS * 3) is None
