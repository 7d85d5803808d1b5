"""Slots of bytes on sealed shared memory, handed over by descriptor.

An arena is a memfd: it has no name, so nothing can clash or stay behind, and the kernel frees it with its last
holder. It is sealed against growing and shrinking, so that a peer's mapping can never raise SIGBUS, and against
new writable mappings (F_SEAL_FUTURE_WRITE, Linux 5.1), so that only its owner writes.
"""

import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from fourstage.errors import FourstageError, PeerError, PeerLostError

PAGE = mmap.PAGESIZE
_F_SEAL_FUTURE_WRITE = 0x0010
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL | _F_SEAL_FUTURE_WRITE


def slot_bytes_for(payload: int) -> int:
    """The size of a slot that takes ``payload`` bytes: whole pages, at least one."""
    return max(1, -(-payload // PAGE)) * PAGE


@dataclass(slots=True, eq=False)
class Arena:
    """``slots`` slots of ``slot_bytes`` bytes each; read-only unless this process made it."""

    descriptor: int
    slots: int
    slot_bytes: int
    _mapping: mmap.mmap
    _view: memoryview
    _callbacks: list[Callable[[], None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def create(cls, slots: int, slot_bytes: int) -> Self:
        """Make and map an arena; its pages take memory only once they are written.

        slot_bytes: a multiple of the page size. Raises FourstageError where the system refuses it: others may
        have what this process has not.
        """
        size = slots * slot_bytes
        descriptor = -1
        try:
            descriptor = os.memfd_create("fourstage", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, size)
            mapping = mmap.mmap(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise FourstageError(
                f"cannot map {slots} slots of {slot_bytes} bytes: {error.strerror}",
                hint="raise the limit of memory or of open files (ulimit), or lower batch_size",
            ) from error
        return cls(descriptor, slots, slot_bytes, mapping, memoryview(mapping))

    @classmethod
    def attach(cls, descriptor: int, slots: int, slot_bytes: int) -> Self:
        """Map a peer's arena read-only; takes the descriptor over.

        Raises PeerError for a descriptor that is no memfd of that size sealed against shrinking.
        """
        try:
            if slots < 1 or slot_bytes < 1 or os.fstat(descriptor).st_size != slots * slot_bytes:
                raise PeerError(
                    f"arena of {os.fstat(descriptor).st_size} bytes announced as {slots} slots of {slot_bytes}"
                )
            if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise PeerError("arena is not sealed against shrinking")
            mapping = mmap.mmap(descriptor, slots * slot_bytes, prot=mmap.PROT_READ)
        except (OSError, PeerError) as error:
            os.close(descriptor)
            if isinstance(error, PeerError):
                raise
            raise PeerError(f"descriptor is no sealed shared memory: {error.strerror}") from error
        return cls(descriptor, slots, slot_bytes, mapping, memoryview(mapping))

    def slot(self, number: int, payload: int) -> memoryview:
        """The first ``payload`` bytes of a slot. Raises PeerError outside the arena."""
        if not (0 <= number < self.slots and 0 <= payload <= self.slot_bytes):
            raise PeerError(f"{payload} bytes of slot {number} in an arena of {self.slots} slots of {self.slot_bytes}")
        start = number * self.slot_bytes
        return self._view[start : start + payload]

    def duplicate(self) -> int:
        """A descriptor of the same memory, the caller's to close or to hand over. Raises PeerLostError once closed."""
        with self._lock:
            if self.descriptor < 0:
                raise PeerLostError("the owner of an arena is gone")
            return os.dup(self.descriptor)

    def before_close(self, callback: Callable[[], None]) -> bool:
        """Have ``close`` call this while the memory is still mapped; False where it is too late. From any thread."""
        with self._lock:
            if self.descriptor < 0:
                return False
            self._callbacks.append(callback)
            return True

    def close(self) -> None:
        """Give the memory back; views that are still held keep their pages until they are dropped."""
        with self._lock:
            if self.descriptor < 0:
                return
            os.close(self.descriptor)
            self.descriptor = -1
        while self._callbacks:
            self._callbacks.pop()()
        self._view.release()
        try:
            self._mapping.close()
        except BufferError:
            # A slot's view is still alive somewhere; the mapping goes with the last of them.
            return
