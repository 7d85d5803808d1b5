"""Arenas and CUDA's page-locking, against a runtime that is played here: codes, refusals, who goes first."""

import ctypes
import logging
import threading
from dataclasses import dataclass, field

import pytest
import torch

from fourstage.arena import PAGE, Arena
from fourstage.trainer.registration import CudaRuntime, Registrations, Runtime, cuda_runtime
from tests.pipeline.harness import eventually
from tests.trainer.batches import Worker

NOT_SUPPORTED = 801


@dataclass
class FakeRuntime(Runtime):
    """Remembers what it was asked; its codes are set by the test."""

    code: int = 0
    calls: list[str] = field(default_factory=list)
    registered: dict[int, int] = field(default_factory=dict)
    pending: bool = False
    first_bytes: bytes = b""

    def register(self, address: int, size: int, flags: int) -> int:
        self.calls.append(f"register {size} {flags}")
        if self.code == 0:
            self.registered[address] = size
        self.pending = self.code != 0
        return self.code

    def unregister(self, address: int) -> int:
        self.calls.append("unregister")
        # Unmapped memory would end the test here, and the process with it.
        self.first_bytes = ctypes.string_at(address, 3)
        del self.registered[address]
        self.pending = self.code != 0
        return self.code

    def clear(self) -> None:
        self.calls.append("clear")
        self.pending = False

    def words(self, code: int) -> str:
        return f"words for {code}"


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    # Services keep their lines to themselves, and a test before this one may have been one.
    monkeypatch.setattr(logging.getLogger("fourstage"), "propagate", True)
    caplog.set_level(logging.WARNING, "fourstage.trainer.registration")
    return caplog


def readable(registrations: Registrations, arena: Arena | None) -> bool:
    with registrations.reading(arena) as registered:
        return registered


def test_an_arena_is_registered_once_and_whole_and_read_only() -> None:
    worker, runtime = Worker(), FakeRuntime()
    registrations = Registrations(runtime)
    assert [readable(registrations, worker.arena) for _ in range(3)] == [True] * 3
    assert runtime.calls == [f"register {2 * worker.arena.slot_bytes} 9"]
    [address] = runtime.registered
    assert address % PAGE == 0
    worker.own.slot(0, 3)[:] = b"own"
    assert ctypes.string_at(address, 3) == b"own"
    worker.close()


def test_it_is_unregistered_while_it_is_still_mapped() -> None:
    worker, runtime = Worker(), FakeRuntime()
    assert readable(Registrations(runtime), worker.arena)
    worker.own.slot(0, 3)[:] = b"xyz"
    worker.arena.close()
    worker.arena.close()
    assert runtime.calls[1:] == ["unregister"]
    assert runtime.first_bytes == b"xyz"
    worker.close()


def test_a_view_that_lives_on_changes_nothing() -> None:
    worker, runtime = Worker(), FakeRuntime()
    registrations = Registrations(runtime)
    view = worker.arena.slot(0, 3)
    worker.own.slot(0, 3)[:] = b"abc"
    assert readable(registrations, worker.arena)
    worker.arena.close()
    assert runtime.calls[1:] == ["unregister"]
    assert bytes(view) == b"abc"
    assert not readable(registrations, worker.arena)
    worker.close()


def test_a_refusal_is_cleared_said_once_and_not_tried_again(heard: pytest.LogCaptureFixture) -> None:
    first, second, runtime = Worker(), Worker(), FakeRuntime(NOT_SUPPORTED)
    registrations = Registrations(runtime)
    assert not any(readable(registrations, worker.arena) for worker in (first, second, first))
    assert [call.partition(" ")[0] for call in runtime.calls] == ["register", "clear"]
    assert not runtime.pending
    [record] = heard.records
    assert "words for 801" in record.getMessage()
    first.close()
    second.close()
    assert "unregister" not in runtime.calls


def test_what_was_registered_before_a_refusal_is_unregistered_all_the_same() -> None:
    first, second, runtime = Worker(), Worker(), FakeRuntime()
    registrations = Registrations(runtime)
    assert readable(registrations, first.arena)
    runtime.code = 2
    assert not readable(registrations, second.arena)
    assert readable(registrations, first.arena)
    runtime.code = 0
    first.close()
    second.close()
    assert runtime.calls[-1] == "unregister"
    assert runtime.registered == {}


def test_memory_of_another_kind_and_closed_arenas_are_never_registered() -> None:
    worker, runtime = Worker(), FakeRuntime()
    registrations = Registrations(runtime)
    worker.close()
    assert not readable(registrations, None)
    assert not readable(registrations, worker.arena)
    assert runtime.calls == []


def test_closing_waits_until_the_device_has_read() -> None:
    worker, runtime = Worker(), FakeRuntime()
    registrations = Registrations(runtime)
    closing = threading.Thread(target=worker.arena.close)
    with registrations.reading(worker.arena) as registered:
        assert registered
        closing.start()
        eventually(lambda: worker.arena.descriptor < 0, "the arena is being closed")
        assert runtime.calls[1:] == []
        assert len(worker.arena.slot(1, 3)) == 3
    closing.join()
    assert runtime.calls[1:] == ["unregister"]
    worker.close()


def test_a_failure_to_unregister_is_cleared_and_said(heard: pytest.LogCaptureFixture) -> None:
    worker, runtime = Worker(), FakeRuntime()
    assert readable(Registrations(runtime), worker.arena)
    runtime.code = 4
    worker.close()
    assert runtime.calls[1:] == ["unregister", "clear"]
    assert "words for 4" in heard.text


def test_without_a_runtime_nothing_is_tried(heard: pytest.LogCaptureFixture) -> None:
    worker = Worker()
    assert not readable(Registrations(None), worker.arena)
    assert len(heard.records) == 1
    worker.close()


def test_a_runtime_that_is_not_loaded_is_not_loaded_for_this(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda:0")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda_runtime(device) is None
    monkeypatch.setattr(torch.version, "cuda", "999.1")
    assert cuda_runtime(device) is None


class FakeCudart:
    """PyTorch's binding: it answers with an enumeration, not with a number."""

    class Code:
        def __init__(self, number: int) -> None:
            self._number = number

        def __int__(self) -> int:
            return self._number

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def cudaHostRegister(self, *arguments: int) -> Code:  # noqa: N802 - CUDA's name
        self.calls.append(arguments)
        return self.Code(0)

    def cudaHostUnregister(self, *arguments: int) -> Code:  # noqa: N802 - CUDA's name
        self.calls.append(arguments)
        return self.Code(713)


def test_calls_go_to_the_device_of_the_trainer_from_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart, devices, library = FakeCudart(), [], ctypes.CDLL(None)

    class Guard:
        def __init__(self, device: torch.device) -> None:
            devices.append(device)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    runtime = CudaRuntime(torch.device("cuda:1"), library)
    assert runtime.register(4096, 8192, 9) == 0
    assert runtime.unregister(4096) == 713
    assert cudart.calls == [(4096, 8192, 9), (4096,)]
    assert devices == [torch.device("cuda:1")] * 2
