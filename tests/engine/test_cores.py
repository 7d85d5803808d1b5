"""What the kernel says of CPU time, as bare machines and containers show it."""

import os
import time
from pathlib import Path

import pytest

from fourstage.engine.cores import Cores, core_seconds

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine that has been idle for 100 s on each of its 64 cores, whatever cores the tests may use."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    line = f"cpu{{}} 1000 0 500 {90 * TICKS} {10 * TICKS} 0 0 0 0 0"
    text = "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *(line.format(number) for number in range(64)), "intr 1 2", ""])
    (tmp_path / "proc" / "stat").write_text(text)
    (tmp_path / "proc" / "self" / "cgroup").write_text("")
    return tmp_path / "proc"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_a_limit_the_cores_of_the_mask_count(proc: Path, tmp_path: Path) -> None:
    cores = Cores(proc, tmp_path / "cgroup")
    mask = len(os.sched_getaffinity(0))
    assert cores.usable == mask
    assert list(cores.idle_seconds(1000.0)) == pytest.approx([100.0 * mask])


def test_a_container_of_control_groups_version_two(proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    root = tmp_path / "cgroup"
    (proc / "self" / "cgroup").write_text("0::/pod/box\n")
    write(root / "pod" / "box", cpu__max="max 100000\n", cpu__stat="usage_usec 1\n")
    write(root / "pod", cpu__max="350000 100000\n", cpu__stat="usage_usec 4000000\nuser_usec 1\n")
    cores = Cores(proc, root)
    assert cores.usable == 3
    assert list(cores.idle_seconds(1000.0)) == pytest.approx([800.0, 3496.0])
    write(root / "pod", cpu__stat="usage_usec 6000000\nuser_usec 1\n")
    assert cores.idle_seconds(1002.0)[1] == pytest.approx(3496.0 + 2 * 3.5 - 2.0)


def test_a_container_of_control_groups_version_one(proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    root = tmp_path / "cgroup"
    # The path is the host's, which a container does not see: its own group lies at the root.
    (proc / "self" / "cgroup").write_text("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n")
    write(root / "cpu", cpu__cfs_quota_us="150000\n", cpu__cfs_period_us="100000\n")
    write(root / "cpuacct", cpuacct__usage="2500000000\n")
    cores = Cores(proc, root)
    assert cores.usable == 1
    assert cores.idle_seconds(10.0)[1] == pytest.approx(12.5)
    write(root / "cpu", cpu__cfs_quota_us="-1\n")
    assert Cores(proc, root).usable == 8


def test_less_than_a_core_is_one_all_the_same(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/\n")
    write(tmp_path / "cgroup", cpu__max="50000 100000\n", cpu__stat="usage_usec 0\n")
    assert Cores(proc, tmp_path / "cgroup").usable == 1


def test_this_machine_answers_and_work_is_counted() -> None:
    cores = Cores()
    assert 1 <= cores.usable <= len(os.sched_getaffinity(0))
    assert cores.idle_seconds(time.monotonic())[0] > 0.0
    before, began = core_seconds(os.getpid()), time.process_time()
    while time.process_time() - began < 0.1:
        pass
    # On a busy machine it has waited for a core as well.
    assert core_seconds(os.getpid()) - before > 0.05


def test_a_process_with_a_strange_name_and_one_that_is_gone(proc: Path) -> None:
    write(proc / "7", stat=f"7 (a) b (c) S 1 7 7 0 -1 4194560 10 0 0 0 {3 * TICKS} {TICKS} 0 0 20 0 1 0 100\n")
    assert core_seconds(7, proc) == 4.0
    write(proc / "7", schedstat="4000000000 2500000000 100\n")
    assert core_seconds(7, proc) == 6.5
    assert core_seconds(8, proc) == 0.0
