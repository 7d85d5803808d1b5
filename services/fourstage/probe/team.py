"""The measuring processes, as their parent sees them."""

import json
import os
import queue
import subprocess
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from fourstage.errors import FourstageError

_PATIENCE = 60.0
"""Seconds for an answer beyond those that the measurement takes: a store far away is opened by all at once."""


class Worker:
    """One process; orders go in, answers come out."""

    def __init__(self) -> None:
        # A session of its own: Ctrl-C is its parent's business. One process one core, as an augmenter.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fourstage.probe.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("Popen has made no pipes")
        self._orders, self._said = self._process.stdin, self._process.stdout
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def tell(self, what: str, **values: Any) -> None:
        """Give an order. Raises FourstageError where the process is gone."""
        try:
            self._orders.write(json.dumps({"do": what} | values) + "\n")
            self._orders.flush()
        except BrokenPipeError as error:
            raise self._gone() from error

    def answer(self, seconds: float = 0.0) -> dict[str, Any]:
        """The next answer, which takes ``seconds`` to measure. Raises FourstageError with what went wrong there."""
        try:
            line = self._answers.get(timeout=seconds + _PATIENCE)
        except queue.Empty as error:
            raise FourstageError(f"a measuring process has said nothing for {seconds + _PATIENCE:.0f} s") from error
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise FourstageError(answer["error"])
        return answer

    def end(self) -> None:
        """It keeps nothing that would have to be put away."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._said.close()
        with suppress(BrokenPipeError):
            self._orders.close()

    def _hear(self) -> None:
        for line in self._said:
            self._answers.put(line)
        self._answers.put("")

    def _gone(self) -> FourstageError:
        code = self._process.wait()
        return FourstageError(
            f"a measuring process ended with code {code}", hint="look for a lack of memory: dmesg names what it killed"
        )


class Team:
    """So many processes; none is left in the end."""

    def __init__(self, count: int) -> None:
        self.workers: list[Worker] = []
        try:
            for _ in range(count):
                self.workers.append(Worker())
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End them all."""
        while self.workers:
            self.workers.pop().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
