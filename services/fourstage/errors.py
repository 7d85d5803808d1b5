"""Whose fault it is, and what to do about it.

Every error that a person meets is one of these: the text names the value received and ``hint`` the fix. The
command line prints both on one line and exits with ``exit_code``; a traceback means a bug in fourstage.
"""

import errno
import os


class FourstageError(Exception):
    """Something failed for a reason that a person can act on."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}; {self.hint}" if self.hint else message


class SettingsError(FourstageError):
    """A setting, an argument or a combination of them that cannot work; nothing has been started."""

    exit_code = 2


class StoppedError(FourstageError):
    """A signal came before the first batch: there is nothing to save."""

    exit_code = 130


class StoreError(FourstageError):
    """The JPEG store is missing, incomplete, foreign or altered."""


class CheckpointError(FourstageError):
    """A checkpoint is missing, torn, or belongs to another network or store."""


class PeerError(FourstageError):
    """A peer sent what the protocol does not allow; the message is dropped, counted and named."""


class RefusedError(FourstageError):
    """A peer refused us, with its reason."""


class PeerLostError(FourstageError):
    """A peer that the run cannot go on without is gone or silent."""


class CorruptSampleError(FourstageError):
    """A stored image whose bytes are right (the checksum matches) cannot be decoded."""


def of_the_machine(error: BaseException) -> FourstageError | None:
    """What the machine does not give, in words: descriptors, memory. None where it is not that.

    Libraries meet it wherever they open a file, torch and NumPy also where they import a module late.
    """
    for words in map(os.strerror, (errno.ENFILE, errno.EMFILE)):
        if isinstance(error, OSError | ImportError) and words in str(error):
            return FourstageError(
                f"cannot open another file or connection: {words}",
                hint="raise the limit of open files (ulimit -n, LimitNOFILE, nofile)",
            )
    if isinstance(error, MemoryError):
        return FourstageError("cannot get any more memory", hint="give the process more, or lower what it may take")
    return None
