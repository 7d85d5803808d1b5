"""Makes the keys of a service: a folder for each role, with all that its processes need and nothing else.

The folders may be there already, empty and on file systems of their own (volumes), so no rename makes all of them at
once. Instead each has a marker from before its first key until all keys of all folders are in place: whoever is killed
in between leaves marked folders, which are made anew, or whole ones, whose markers are removed.
"""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zmq.auth.certs import create_certificates

from fourstage.errors import SettingsError
from fourstage.wire.security import ADMITS, DIALS, PEERS, ROLES, UNFINISHED, Role, read, role_of, secret_file


def make_keys(directory: Path) -> bool:
    """Make the folders of all roles; False: they were there, whole, and are as they were.

    Raises SettingsError where some of the keys are missing or of another set, or where it cannot write.
    """
    folders = {role: directory / role for role in ROLES}
    with writing(directory):
        whole = _are_whole(folders)
        if not whole:
            _refuse_part(folders)
            begin(folders.values())
            _write(folders)
        _finish(folders)
    return not whole


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Alone at work on a directory of keys, whose files are this user's alone. Raises SettingsError for an OSError."""
    try:
        with _private(), _alone(directory):
            yield
    except OSError as error:
        where = error.filename or directory
        hint = "every folder must belong to the user who runs this"
        raise SettingsError(f"cannot write keys to {where}: {error.strerror or error}", hint=hint) from error


@contextmanager
def _private() -> Iterator[None]:
    """Files of this user alone, whatever the umask says; of the whole process, so for a command, not a service."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some file systems lock nothing.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _are_whole(folders: dict[Role, Path]) -> bool:
    """Whether every folder has its keys, all of one set; one that was revoked may be missing where others of its role
    have been added."""
    try:
        loader = read(folders["loader"], "loader")
        names = set(loader.clients.values())
        revoked = {role_of(name) for name in names} - names
        there = [role for role in ROLES if role not in revoked or _has_keys(folders[role])]
        keys = {role: read(folders[role], role) for role in there}
    except SettingsError:
        return False
    return all(
        keys[server].own.public in keys[role].servers and keys[role].own.public in keys[server].clients
        for role in keys
        for server in DIALS[role]
        if server in keys
    )


def _refuse_part(folders: dict[Role, Path]) -> None:
    """Keys that somebody may use already are never written over."""
    used = [folder for folder in folders.values() if not (folder / UNFINISHED).is_dir() and _has_keys(folder)]
    if used:
        raise SettingsError(
            f"{used[0]} holds keys, but the folders of all roles together are no whole set",
            hint=f"put the missing ones back, or remove {', '.join(map(str, folders.values()))} for new keys",
        )


def _has_keys(folder: Path) -> bool:
    return any(folder.glob("*.key*")) or any((folder / PEERS).glob("*.key"))


def begin(folders: Collection[Path]) -> None:
    """Mark every folder before the first key is in any; then take away what an earlier call left."""
    for folder in folders:
        folder.mkdir(exist_ok=True)
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(0o700)
        (folder / UNFINISHED).mkdir(exist_ok=True)
        flush(folder)
    for folder in folders:
        for path in (*folder.glob("*.key*"), *(folder / PEERS).glob("*.key"), *(folder / UNFINISHED).iterdir()):
            path.unlink()


def _write(folders: dict[Role, Path]) -> None:
    """Every public key where it belongs, then the secrets."""
    for role, folder in folders.items():
        public, secret = create_certificates(folder / UNFINISHED, role)
        targets = [folders[client] / f"{role}.key" for client in ADMITS[role]]
        targets += [folders[server] / PEERS / f"{role}.key" for server in DIALS[role]]
        for target in targets:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(public, target)
            flush(target, target.parent)
        flush(Path(secret))
    for role, folder in folders.items():
        secret_file(folder / UNFINISHED, role).rename(secret_file(folder, role))
        flush(folder)


def _finish(folders: dict[Role, Path]) -> None:
    for folder in folders.values():
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def flush(*paths: Path) -> None:
    """Files and folders survive a power cut from here on."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
