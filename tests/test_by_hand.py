"""What is asked of a run by hand: asked by one process, taken once by another, whatever lies in the directory."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage import rundir
from fourstage.by_hand import RATE, SCALE
from fourstage.errors import SettingsError
from tests.pipeline.harness import fourstage


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / rundir.SETTINGS).write_text("")
    return tmp_path


def test_a_request_is_taken_once_and_the_newest_counts(run_dir: Path) -> None:
    assert RATE.take(run_dir) is None
    RATE.ask(run_dir, 0.5)
    RATE.ask(run_dir, 0.003)
    assert RATE.take(run_dir) == 0.003
    assert RATE.take(run_dir) is None
    assert [path.name for path in run_dir.iterdir()] == [rundir.SETTINGS]


def test_requests_of_two_kinds_do_not_disturb_each_other(run_dir: Path) -> None:
    assert SCALE.ask(run_dir, "5") == 5
    RATE.ask(run_dir, 0.5)
    assert SCALE.take(run_dir) == 5
    assert RATE.take(run_dir) == 0.5
    assert SCALE.ask(run_dir, "auto") == "auto"
    assert SCALE.take(run_dir) == "auto"


@pytest.mark.parametrize("value", ["0", "1025", "-3", "2.5", "many", "", "automatic"])
def test_what_is_no_number_of_augmenters_is_refused(run_dir: Path, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"scale '{value}'; .*1 to 1024, or auto"):
        SCALE.ask(run_dir, value)
    assert SCALE.take(run_dir) is None


@pytest.mark.parametrize("text", ['{"scale": "5"}', '{"scale": true}', '{"scale": 0}', '{"rate": 5}', "5", ""])
def test_a_file_that_asks_for_no_number_is_left_out(run_dir: Path, text: str) -> None:
    (run_dir / SCALE.file).write_text(text)
    assert SCALE.take(run_dir) is None
    assert not (run_dir / SCALE.file).exists()


def test_a_request_that_could_not_be_read_ended_the_run(run_dir: Path) -> None:
    (run_dir / SCALE.file).mkdir()
    assert SCALE.take(run_dir) is None
    assert SCALE.take(run_dir) is None


def test_a_request_that_was_nested_deeply_ended_every_run_that_went_on(run_dir: Path) -> None:
    (run_dir / SCALE.file).write_text(100_000 * "[")
    assert SCALE.take(run_dir) is None
    assert [path.name for path in run_dir.iterdir()] == [rundir.SETTINGS]


def test_a_request_that_was_looked_at_counted_for_the_run_that_went_on(run_dir: Path) -> None:
    SCALE.ask(run_dir, "5")
    assert SCALE.look(run_dir) == 5
    SCALE.withdraw(run_dir)
    assert SCALE.take(run_dir) is None


@pytest.mark.parametrize("value", [-0.1, 100.1, float("nan"), float("inf")])
def test_what_is_no_rate_is_refused(run_dir: Path, value: float) -> None:
    with pytest.raises(SettingsError, match=r"rate .*0 to 100"):
        RATE.ask(run_dir, value)
    assert RATE.take(run_dir) is None


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no run"):
        RATE.ask(tmp_path, 0.1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.binary(max_size=50)
    | st.sampled_from([b"{}", b"[1]", b"0.1", b'{"rate": "0.1"}', b'{"rate": -1}', b'{"rate": NaN}', b'{"rate": null}'])
)
def test_any_other_file_is_left_out_and_removed(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    folder = tmp_path_factory.mktemp("run", numbered=True)
    (folder / RATE.file).write_bytes(text)
    assert RATE.take(folder) is None
    assert not list(folder.iterdir())


def test_requests_that_come_while_others_are_taken_are_not_lost(run_dir: Path) -> None:
    rates = [number / 1000 for number in range(1, 101)]

    def ask() -> None:
        for rate in rates:
            RATE.ask(run_dir, rate)

    asker = threading.Thread(target=ask)
    taken = []
    asker.start()
    while asker.is_alive():
        taken.append(RATE.take(run_dir))
    asker.join()
    taken.append(RATE.take(run_dir))
    came = [rate for rate in taken if rate is not None]
    assert came == sorted(came)
    assert came[-1] == rates[-1]


def test_the_command_asks_and_says_so(run_dir: Path) -> None:
    done = fourstage("rate", "0.002", "--run-dir", str(run_dir))
    assert done.returncode == 0, done.stderr
    assert "0.002" in done.stdout
    assert RATE.take(run_dir) == 0.002


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


def test_a_request_that_is_looked_at_stays_until_it_is_done_with(run_dir: Path) -> None:
    RATE.ask(run_dir, 0.5)
    assert [RATE.look(run_dir), RATE.look(run_dir)] == [0.5, 0.5]
    RATE.ask(run_dir, 0.003)
    RATE.done(run_dir)
    assert RATE.look(run_dir) == 0.003
    RATE.done(run_dir)
    assert RATE.look(run_dir) is None
