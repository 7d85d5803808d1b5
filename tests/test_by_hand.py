"""A learning rate set by hand: asked by one process, taken once by another, whatever lies in the directory."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage import rundir
from fourstage.by_hand import REQUEST, request_rate, take_rate
from fourstage.errors import SettingsError
from tests.pipeline.harness import fourstage


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / rundir.SETTINGS).write_text("")
    return tmp_path


def test_a_request_is_taken_once_and_the_newest_counts(run_dir: Path) -> None:
    assert take_rate(run_dir) is None
    request_rate(run_dir, 0.5)
    request_rate(run_dir, 0.003)
    assert take_rate(run_dir) == 0.003
    assert take_rate(run_dir) is None
    assert [path.name for path in run_dir.iterdir()] == [rundir.SETTINGS]


@pytest.mark.parametrize("value", [-0.1, 100.1, float("nan"), float("inf")])
def test_what_is_no_rate_is_refused(run_dir: Path, value: float) -> None:
    with pytest.raises(SettingsError, match=r"rate .*0 to 100"):
        request_rate(run_dir, value)
    assert take_rate(run_dir) is None


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no run"):
        request_rate(tmp_path, 0.1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.binary(max_size=50)
    | st.sampled_from([b"{}", b"[1]", b"0.1", b'{"rate": "0.1"}', b'{"rate": -1}', b'{"rate": NaN}', b'{"rate": null}'])
)
def test_any_other_file_is_left_out_and_removed(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    folder = tmp_path_factory.mktemp("run", numbered=True)
    (folder / REQUEST).write_bytes(text)
    assert take_rate(folder) is None
    assert not list(folder.iterdir())


def test_requests_that_come_while_others_are_taken_are_not_lost(run_dir: Path) -> None:
    rates = [number / 1000 for number in range(1, 101)]

    def ask() -> None:
        for rate in rates:
            request_rate(run_dir, rate)

    asker = threading.Thread(target=ask)
    taken = []
    asker.start()
    while asker.is_alive():
        taken.append(take_rate(run_dir))
    asker.join()
    taken.append(take_rate(run_dir))
    came = [rate for rate in taken if rate is not None]
    assert came == sorted(came)
    assert came[-1] == rates[-1]


def test_the_command_asks_and_says_so(run_dir: Path) -> None:
    done = fourstage("rate", "0.002", "--run-dir", str(run_dir))
    assert done.returncode == 0, done.stderr
    assert "0.002" in done.stdout
    assert take_rate(run_dir) == 0.002


def test_the_command_refuses_what_cannot_work(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    for arguments, words in (
        (("0.1", "--run-dir", str(empty)), "holds no run"),
        (("1e9", "--run-dir", str(run_dir)), "0 to 100"),
        (("fast", "--run-dir", str(run_dir)), "'value'"),
        (("0.1",), "--run-dir"),
    ):
        done = fourstage("rate", *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
