"""Child processes: real ones, which end by themselves."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourstage.by_hand import SCALE
from fourstage.engine.crew import Crew
from fourstage.engine.processes import Processes
from fourstage.engine.scaling import Scaling
from fourstage.errors import FourstageError, SettingsError


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    (tmp_path / "settings.toml").write_text("batch_size = 8\n")
    made = Processes(settings=tmp_path / "settings.toml", sockets=tmp_path, logs=tmp_path)
    yield made
    made.stop(made.names())
    made.let_go()


def test_whoever_sleeps_wakes_with_the_end_of_the_process_or_of_anything_else(processes: Processes) -> None:
    processes.start("loader", ["loader", "--store", "nowhere"])
    reader, writer = os.pipe()
    os.write(writer, b"x")
    began = time.monotonic()
    processes.sleep("loader", 60.0, reader)
    processes.sleep("loader", 60.0)
    assert time.monotonic() - began < 50.0
    assert processes.poll("loader") == 1
    assert "nowhere" in processes.last_words("loader", 1)
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_a_service_that_is_started_wrongly_is_named_with_what_is_wrong(processes: Processes) -> None:
    processes.start("augmenter", ["augmenter"])
    processes.sleep("augmenter", 60.0)
    assert processes.poll("augmenter") == 2
    assert "--name" in processes.last_words("augmenter", 2)


def test_the_last_words_of_an_earlier_process_were_taken_for_those_of_one_that_said_none(
    processes: Processes, tmp_path: Path
) -> None:
    """Logs are appended to: a run that had been out of space and was resumed was said to be so again."""
    (tmp_path / "loader.log").write_text("fourstage: cannot write /here: No space left on device; free space there\n")
    processes.start("loader", [], ("-c", "import sys; sys.exit('gone')"))
    processes.sleep("loader", 60.0)
    words = processes.last_words("loader", 1)
    assert "No space left" not in words
    assert words.startswith("loader ended with 1: gone; see ")


def test_settings_that_a_service_could_not_take_were_reported_as_a_failure(processes: Processes) -> None:
    processes.start("augmenter", ["augmenter"])
    processes.sleep("augmenter", 60.0)
    with pytest.raises(SettingsError, match="--name"):
        processes.restart("augmenter", 2)


def test_one_augmenter_more_that_could_not_be_started_ended_the_run(
    processes: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crew = Crew(processes)
    scaling = Scaling(tmp_path, processes, crew, auto=False, replicas=1)
    (tmp_path / "augmenter-0.log").mkdir()
    (tmp_path / "settings.toml").touch()
    with pytest.raises(FourstageError, match=r"cannot start augmenter-0: .*Is a directory"):
        crew.resize(1, 0.0)
    SCALE.ask(tmp_path, "1")
    with caplog.at_level(logging.WARNING):
        scaling.turn(0.0)
    assert "augmenters stay 0: cannot start augmenter-0" in caplog.text
    assert crew.names == []
