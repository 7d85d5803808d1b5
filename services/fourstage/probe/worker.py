"""A process that measures on one core: ``python -m fourstage.probe.worker``.

It is told what to do in lines of JSON on standard input and answers in such lines on standard output. When its input
ends its parent is gone, and so is it.
"""

import json
import os
import queue
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fourstage.errors import FourstageError
from fourstage.probe.measure_loopback import receive, send
from fourstage.probe.measure_transform import Bench
from fourstage.settings import Settings
from fourstage.store import open_store
from fourstage.wire.sockets import Bound


def main() -> None:
    """Serve until the input ends."""
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    bench: Bench | None = None
    while True:
        order = orders.get()
        try:
            match order["do"]:
                case "prepare":
                    settings = Settings.model_validate(order["settings"])
                    store = open_store(Path(order["store"]))
                    bench = Bench(store, settings, rows=order["rows"], number=order["number"])
                    _answer({})
                case "transform" if bench is not None:
                    _answer(asdict(bench.measure(order["seconds"], decode=order["decode"])))
                case "receive":
                    with Bound("tcp://127.0.0.1:*", max_frame=order["largest"]) as bound:
                        _answer({"address": bound.address})
                        _answer({"rates": receive(bound, order["seconds"])})
                case "send":
                    send(order["address"], rows=order["rows"], pixel_bytes=order["pixel_bytes"], slots=order["slots"])
                case other:
                    raise FourstageError(f"there is nothing like {other!r} to measure here")
        except FourstageError as error:
            _answer({"error": str(error)})


def _listen(orders: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    # Whatever is being measured: nobody waits for it any more.
    os._exit(0)


def _answer(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
