"""What a process says that the machine has let down."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fourstage.errors import of_the_machine

WITHOUT_DESCRIPTORS = """
import resource
from fourstage.ending import end_with

def run():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    import sqlite3
    return 0

end_with(run, debug=False)
"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x.py"), "Too many open files; raise the limit"),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), "Too many open files in system; raise"),
        (ImportError("libx.so: cannot open shared object file: Too many open files"), "Too many open files; raise"),
        (MemoryError(), "memory"),
    ],
)
def test_it_is_in_words_with_what_to_do(error: Exception, words: str) -> None:
    assert words in str(of_the_machine(error))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, os.strerror(errno.ENOENT), "x.py"), ValueError("x"), OSError()]
)
def test_other_errors_are_not_the_machines(error: Exception) -> None:
    assert of_the_machine(error) is None


def test_a_library_that_met_no_descriptor_left_was_reported_as_an_internal_error(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DESCRIPTORS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("fourstage: cannot open another file or connection: Too many open files;"), (
        done.stderr
    )
