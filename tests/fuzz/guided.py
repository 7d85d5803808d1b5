"""Coverage-guided: ``python -m tests.fuzz.guided [codec|side] [--seconds N] [--seed N] [CORPUS]`` (extra ``fuzz``).

atheris changes bytes so that they reach new code; what it finds is written to ``crash-*`` and ends the process. For the
codec the first byte chooses the type, as frame 0 does. Folders of earlier findings may be given as a corpus.
"""

import argparse
import contextlib
import socket
import sys
from collections.abc import Callable

try:
    import atheris  # type: ignore[import-untyped]  # It has no stubs, and is an extra.
except ImportError as error:
    raise SystemExit("atheris is not installed: pip install 'fourstage[fuzz]' (Linux on x86-64)") from error

with atheris.instrument_imports(include=["fourstage.wire", "fourstage.arena"]):
    from fourstage.arena import Arena
    from fourstage.errors import PeerError
    from fourstage.wire import side
    from fourstage.wire.codec import MAGIC, decode
    from fourstage.wire.messages import PROTOCOL, TYPES

_KINDS = tuple(TYPES)


def of_codec(data: bytes) -> None:
    """Any bytes are a message or a PeerError."""
    if not data:
        return
    with contextlib.suppress(PeerError):
        decode([MAGIC + bytes((PROTOCOL, _KINDS[data[0] % len(_KINDS)])), data[1:]])


def of_side() -> Callable[[bytes], None]:
    """Any packet, with the descriptor of an arena of one page, is that arena or a PeerError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    arena = Arena.create(1, 4096)

    def give(data: bytes) -> None:
        with contextlib.suppress(OSError):
            socket.send_fds(theirs, [data[1:513]], [arena.descriptor] if data[:1] > b"\x40" else [])
        with contextlib.suppress(PeerError, BlockingIOError):
            if (received := side.receive_arena(ours)) is not None:
                received[1].close()

    return give


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided")
    parser.add_argument("target", nargs="?", choices=("codec", "side"), default="codec")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("corpus", nargs="*", help="folders; new findings go into the first")
    arguments = parser.parse_args()
    options = [f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}", "-max_len=4096", "-rss_limit_mb=1024"]
    atheris.Setup([sys.argv[0], *options, *arguments.corpus], of_codec if arguments.target == "codec" else of_side())
    atheris.Fuzz()


if __name__ == "__main__":
    main()
