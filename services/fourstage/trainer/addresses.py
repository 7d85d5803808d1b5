"""Where a trainer listens, and what it tells augmenters to connect to."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

from fourstage.errors import SettingsError
from fourstage.process import socket_path


def receiver_addresses(receiver: str, loader: str, sockets: Path, bind: str = "") -> tuple[str, str]:
    """Where to bind and what to tell augmenters; an empty second one is the bound address itself.

    bind: where to bind if it is not what augmenters are told. Raises SettingsError for a receiver other than ``auto``
    and ``tcp://HOST:PORT``.
    """
    if bind and receiver == "auto":
        raise SettingsError(
            f"receiver_bind = {bind!r} with receiver = 'auto'", hint="say in receiver where it is reached"
        )
    if receiver == "auto":
        if loader.startswith(("ipc:", "file:")):
            return f"ipc://{socket_path(sockets, 'trainer-zmq')}", ""
        host = urlsplit(loader).hostname or ""
        own = _interface_towards(host)
        return f"tcp://{own}:0", f"tcp://{own}:0"
    parts = urlsplit(receiver)
    if parts.scheme != "tcp" or not parts.hostname or parts.port is None:
        raise SettingsError(f"receiver = {receiver!r}", hint='"auto" or tcp://HOST:PORT')
    return bind or f"tcp://*:{parts.port}", receiver


def _interface_towards(host: str) -> str:
    """This machine's address as seen from ``host``; nothing is sent to find out."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise SettingsError(f"loader.address: no way to {host!r}: {error.strerror}") from error
