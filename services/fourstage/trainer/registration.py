"""Arenas that a GPU reads directly: page-locked once, whole, when the first batch in one arrives.

Registering costs about as much as copying the same bytes, so it is never done slot by slot. The mapping is
read-only, which CUDA takes with a flag that not every device and driver knows; one that refuses is asked no more,
and batches go through a page-locked buffer of the copy stage instead.
"""

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np
import torch

from fourstage.arena import Arena

log = logging.getLogger(__name__)

_PORTABLE, _READ_ONLY = 1, 8
"""cudaHostRegisterPortable: page-locked for every device; cudaHostRegisterReadOnly: mapped without PROT_WRITE."""


class Runtime(Protocol):
    """What registration needs of CUDA's runtime; codes are cudaError_t, 0 for success."""

    def register(self, address: int, size: int, flags: int) -> int:
        """Page-lock memory: whole pages."""

    def unregister(self, address: int) -> int:
        """Undo ``register``."""

    def clear(self) -> None:
        """Forget this thread's last error, which would otherwise surface in an unrelated call."""

    def words(self, code: int) -> str:
        """What a code means."""


class Registrations:
    """The registered arenas of one stream; each is unregistered before it is unmapped."""

    def __init__(self, runtime: Runtime | None) -> None:
        """runtime: None where there is no way to CUDA's errors; then nothing is ever registered."""
        self._runtime = runtime
        self._lock = threading.Lock()
        self._addresses: dict[Arena, int] = {}
        if runtime is None:
            _say_refused("PyTorch's CUDA runtime is no library of its own")

    @contextmanager
    def reading(self, arena: Arena | None) -> Iterator[bool]:
        """Whether the device may read the arena's memory, for as long as the block lasts; registers a new arena.

        Whoever closes the arena meanwhile waits: the block ends when the device has read, and waits for nobody else.
        None is memory of another kind, which the device may not read.
        """
        with self._lock:
            yield arena is not None and (arena in self._addresses or self._register(arena))

    def _register(self, arena: Arena) -> bool:
        runtime = self._runtime
        # Once the callback is set, closing waits for the lock: the memory stays mapped.
        if runtime is None or not arena.before_close(partial(self._unregister, runtime, arena)):
            return False
        address, _ = np.frombuffer(arena.slot(0, arena.slot_bytes), np.uint8).__array_interface__["data"]
        code = runtime.register(address, arena.slots * arena.slot_bytes, _PORTABLE | _READ_ONLY)
        if code != 0:
            runtime.clear()
            _say_refused(runtime.words(code))
            self._runtime = None
            return False
        self._addresses[arena] = address
        return True

    def _unregister(self, runtime: Runtime, arena: Arena) -> None:
        with self._lock:
            address = self._addresses.pop(arena, None)
            if address is None:
                return
            code = runtime.unregister(address)
            if code != 0:
                runtime.clear()
                log.warning("an arena stays page-locked until the trainer ends: %s", runtime.words(code))


def _say_refused(why: str) -> None:
    log.warning("the GPU cannot read the workers' memory itself (%s): each batch is copied once more on the CPU", why)


class CudaRuntime:
    """The runtime that PyTorch has loaded, for one device, from any thread."""

    def __init__(self, device: torch.device, library: ctypes.CDLL) -> None:
        """library: the same libcudart that PyTorch calls; ``cuda_runtime`` finds it."""
        self._device = device
        self._library = library
        self._cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]

    def register(self, address: int, size: int, flags: int) -> int:
        """Page-lock memory: whole pages."""
        # A new thread begins on the first GPU: without the guard it would make a context there.
        with torch.cuda.device(self._device):
            return int(self._cudart.cudaHostRegister(address, size, flags))

    def unregister(self, address: int) -> int:
        """Undo ``register``."""
        with torch.cuda.device(self._device):
            return int(self._cudart.cudaHostUnregister(address))

    def clear(self) -> None:
        """Forget this thread's last error; PyTorch has no call for it."""
        self._library.cudaGetLastError()

    def words(self, code: int) -> str:
        """What a code means."""
        return str(torch.cuda.CudaError(code))


def cuda_runtime(device: torch.device) -> CudaRuntime | None:
    """The runtime of PyTorch's own libcudart; None where PyTorch was built with one inside."""
    if torch.version.cuda is None:
        return None
    try:
        # Only a library that is loaded already: another copy would have errors of its own.
        library = ctypes.CDLL(f"libcudart.so.{torch.version.cuda.partition('.')[0]}", mode=os.RTLD_NOLOAD)
    except OSError:
        return None
    return CudaRuntime(device, library)
