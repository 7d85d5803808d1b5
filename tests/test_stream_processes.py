"""BatchStream with processes of its own: the same bytes through kills, nothing left behind, and ranks that share."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from itertools import islice
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
import torch

from fourstage import ranks
from fourstage.errors import FourstageError, SettingsError, StoreError
from fourstage.store.prepare import prepare
from tests.pipeline.harness import SIZE, eventually, is_alive, write_photographs
from tests.streams import BATCHES, PER_CLASS, SAMPLES, Expected, assert_same, make

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("p")
    write_photographs(folder, "train", PER_CLASS)
    prepare(folder / "train", folder / "store", size=SIZE, workers=1)
    return folder / "store"


@pytest.fixture(scope="module")
def expected(store: Path) -> Expected:
    return Expected.of(store)


@pytest.fixture
def traces(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private folder for temporary files: whatever lies in it in the end was left behind."""
    folder = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def children(kind: str = "", of: int | None = None) -> list[int]:
    """Process numbers of a process's services, those of one kind if one is named."""
    found = []
    for child in psutil.Process(of).children():
        with psutil.Process(child.pid).oneshot():
            words = child.cmdline() if child.status() != psutil.STATUS_ZOMBIE else []
        if "fourstage" in words and kind in ("", words[words.index("fourstage") + 1]):
            found.append(child.pid)
    return found


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# The same bytes


def test_bytes_depend_on_neither_workers_nor_carrier_also_after_a_resume(store: Path, expected: Expected) -> None:
    with make(store, workers=1, transport="inline") as stream:
        assert len(children("augmenter")) == 1
        assert_same(list(stream), expected.epoch(0))
        assert_same(list(islice(stream, 4)), expected.epoch(1)[:4])
        state = stream.state_dict()
    with make(store, workers=3, transport="arena") as stream:
        assert len(children("augmenter")) == 3
        stream.load_state_dict(state)
        assert_same(list(stream), expected.epoch(1)[4:])
        assert_same(list(stream), expected.epoch(2))


def test_killed_processes_are_started_again_and_change_nothing(store: Path, expected: Expected) -> None:
    with make(store, workers=2, settings={"augmenter.batch_seconds": 0.05}) as stream:
        received = []
        for batch in stream:
            received.append(batch)
            if len(received) in (2, 4):
                victim = children("augmenter" if len(received) == 2 else "loader")[0]
                os.kill(victim, signal.SIGKILL)
        assert_same(received, expected.epoch(0))
        assert_same(list(stream), expected.epoch(1))
        eventually(lambda: len(children()) == 3, "three processes again")


def test_a_second_stream_shares_the_processes_of_the_first(store: Path, expected: Expected) -> None:
    with make(store, workers=1) as first, make(first.address, seed=9) as second:
        for mine, other in zip(first, second, strict=True):
            assert mine["keys"] != other["keys"]
        assert_same(list(second), expected.epoch(1, seed=9))
        assert len(children()) == 2


# Nothing left behind


@pytest.mark.parametrize("way", ["an exception", "its last reference", "a garbage collection in a thread"])
def test_the_end_of_a_stream_leaves_nothing(store: Path, traces: Path, way: str) -> None:
    # What earlier tests left to it has descriptors too.
    gc.collect()
    before = descriptors()
    stream = make(store, workers=1)
    next(iter(stream))
    pids = children()
    assert len(pids) == 2
    assert len(list(traces.iterdir())) == 1
    if way == "an exception":
        with pytest.raises(TypeError), stream:
            next(stream)  # type: ignore[call-overload]
    elif way == "its last reference":
        del stream
    else:
        cycle: list[object] = [stream]
        cycle.append(cycle)
        del cycle, stream
        collector = threading.Thread(target=gc.collect)
        collector.start()
        collector.join()
        eventually(lambda: not list(traces.iterdir()), "the close")
    assert not any(is_alive(pid) for pid in pids)
    assert list(traces.iterdir()) == []
    assert descriptors() == before


SCRIPT = """
import signal, sys
from tests.streams import make

if __name__ == "__main__":
    # Whoever runs the tests in the background may have left SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stream = make(sys.argv[1], workers=1)
    for batch in stream:
        break
    print(len(batch["keys"]), flush=True)
    if sys.argv[2] != "end":
        while True:
            for batch in stream:
                pass
"""


@pytest.mark.parametrize("way", ["end", "interrupt", "kill"])
def test_the_end_of_a_process_leaves_nothing(store: Path, traces: Path, way: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store), way], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    if way == "end":
        pids = []
    else:
        process.stdout.readline()
        pids = children(of=process.pid)
        assert len(pids) == 2
        process.send_signal(signal.SIGINT if way == "interrupt" else signal.SIGKILL)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == {"end": 0, "interrupt": -signal.SIGINT, "kill": -signal.SIGKILL}[way], error
    assert error == b"" if way != "interrupt" else b"KeyboardInterrupt" in error
    eventually(lambda: not any(is_alive(pid) for pid in pids) and not list(traces.iterdir()), "nothing left")


def test_a_fork_of_a_killed_process_kept_its_services_alive(store: Path, traces: Path) -> None:
    forking = SCRIPT.replace("    print(len", "    import os, time\n    os.fork() or time.sleep(600)\n    print(len")
    process = subprocess.Popen([sys.executable, "-c", forking, str(store), "kill"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    pids = children(of=process.pid)
    (fork,) = {child.pid for child in psutil.Process(process.pid).children()} - set(pids)
    try:
        process.kill()
        process.wait()
        eventually(lambda: not any(is_alive(pid) for pid in pids) and not list(traces.iterdir()), "nothing left")
        assert is_alive(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
        process.stdout.close()


# Failures


def test_processes_that_cannot_start_are_given_up_with_their_words(store: Path, traces: Path) -> None:
    with pytest.raises(FourstageError, match=r"metrics\.port = 0 on 192\.0\.2\.1"):
        make(store, workers=1, settings={"metrics.host": "192.0.2.1"})
    assert children() == []
    assert list(traces.iterdir()) == []


def test_a_stream_that_could_not_be_watched_left_its_processes(
    store: Path, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "eventfd", Mock(side_effect=OSError(errno.EMFILE, os.strerror(errno.EMFILE))))
        with pytest.raises(OSError, match="Too many open files"):
            make(store, workers=1)
    assert children() == []
    assert list(traces.iterdir()) == []


def test_a_missing_store_starts_nothing(tmp_path: Path, traces: Path) -> None:
    with pytest.raises(StoreError):
        make(tmp_path)
    with pytest.raises(SettingsError, match="workers = 0"):
        make(tmp_path, workers=0)
    assert list(traces.iterdir()) == []


# Ranks


def test_a_rank_on_another_machine_is_told_what_to_do(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "place", lambda: (1, 2))
    monkeypatch.setattr(ranks, "tell", lambda _: str(tmp_path / "elsewhere"))
    monkeypatch.setattr(ranks, "all_agree", lambda agreed: agreed)
    with pytest.raises(SettingsError, match=r"rank 1 does not find the service of rank 0: .*tcp://HOST:PORT"):
        make(store)


RANK = """
import json, sys
import torch
import torch.distributed as dist
from tests.streams import make

if __name__ == "__main__":
    store, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    with make(store, workers=2) as stream:
        for epoch in range(1 + rank):
            batches = list(stream)
            torch.save(batches, f"{folder}/{rank}-{epoch}.pt")
        state = stream.state_dict()
        with open(f"{folder}/{rank}.json", "w") as file:
            json.dump(state, file)
    dist.destroy_process_group()
"""


def test_two_ranks_share_one_service_and_partition_each_batch(
    store: Path, expected: Expected, tmp_path: Path, traces: Path
) -> None:
    """Rank 1 goes on for an epoch when rank 0, which started the processes, has ended."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(store), str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    shares = [torch.load(tmp_path / f"{rank}-0.pt") for rank in range(2)]
    whole = expected.epoch(0)
    assert_same(
        [
            {
                "images": torch.cat([first["images"], second["images"]]),
                "labels": torch.cat([first["labels"], second["labels"]]),
                "keys": first["keys"] + second["keys"],
                "positions": torch.cat([first["positions"], second["positions"]]),
            }
            for first, second in zip(*shares, strict=True)
        ],
        whole,
    )
    sizes = [len(batch["keys"]) for batch in shares[0]], [len(batch["keys"]) for batch in shares[1]]
    assert sizes == ([4] * (BATCHES - 1) + [2], [4] * (BATCHES - 1) + [3])
    assert sum(map(sum, sizes)) == SAMPLES
    later = torch.load(tmp_path / "1-1.pt")
    assert [batch["keys"] for batch in later] == [
        batch["keys"][len(batch["keys"]) // 2 :] for batch in expected.epoch(1)
    ]
    states = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    # The budget of what may be left out counts by the epoch as well.
    assert states[1] == states[0] | {"epoch": 2, "budget": states[0]["budget"] | {"epoch": 1}}
    eventually(lambda: not list(traces.iterdir()), "the service's end with the last rank")
