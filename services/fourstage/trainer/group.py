"""How the processes of one training reach one another; ``layout`` says whose part is whose."""

import datetime
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fourstage.errors import FourstageError
from fourstage.process import StopFlag
from fourstage.trainer.columns import Column
from fourstage.trainer.layout import COLUMNS, Layout
from fourstage.trainer.watch import Watch

log = logging.getLogger(__name__)

_NEVER = datetime.timedelta(days=30)
"""Of collective calls: whoever waits for data may wait for long, and ``Watch`` knows who is dead."""
_TEXT_BYTES = 1024


class Group:
    """Calls in which every process of a training takes part, in the same order. Alone, they return at once."""

    def __init__(
        self, place: Layout, device: torch.device, stop: StopFlag,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        """Meet the others; raises FourstageError where one of them is gone. waiting: entered while words and votes
        travel, which takes as long as the slowest of all waits for its batch."""
        self.layout = place
        self._waiting = waiting
        self.column: Column | None = None
        self.replicas: dist.ProcessGroup | None = None
        self._watch: Watch | None = None
        if place.world == 1:
            return
        self._watch = Watch.of_environment(place.rank, place.world, stop)
        with self._waiting():
            store, _, _ = next(rendezvous("env://", timeout=_NEVER))
        with self.errors(), self._waiting():
            backend = _backend(device)
            dist.init_process_group(
                backend, store=store, rank=place.rank, world_size=place.world, timeout=_NEVER,
                device_id=device if backend == "nccl" else None,
            )  # fmt: skip
            # Words and votes never travel by GPU: they would wait for its queue.
            self._control = dist.new_group(backend="gloo", timeout=_NEVER)
            for replica in range(place.replicas if place.columns > 1 else 0):
                pair = dist.new_group([COLUMNS * replica, COLUMNS * replica + 1], backend=backend, timeout=_NEVER)
                if replica == place.replica:
                    self.column = Column(place.column, pair)
            for column in range(place.columns if place.replicas > 1 else 0):
                same = dist.new_group(list(range(column, place.world, place.columns)), backend=backend, timeout=_NEVER)
                if column == place.column:
                    self.replicas = same

    def share(self, payload: bytes) -> list[bytes]:
        """Everybody's payload by rank; all of one length."""
        if self.layout.world == 1:
            return [payload]
        mine = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        theirs = [torch.empty_like(mine) for _ in range(self.layout.world)]
        with self.errors(), self._waiting():
            dist.all_gather(theirs, mine, self._control)
        return [tensor.numpy().tobytes() for tensor in theirs]

    def tell(self, text: str) -> list[str]:
        """Everybody's text by rank."""
        raw = text.encode()
        if len(raw) > _TEXT_BYTES:
            raise FourstageError(f"{text!r} has more than {_TEXT_BYTES} bytes")
        return [told.rstrip(b"\0").decode() for told in self.share(raw.ljust(_TEXT_BYTES, b"\0"))]

    def gather(self, payload: bytes) -> list[bytes]:
        """Everybody's payload by rank, of any lengths; asks twice where ``share`` asks once."""
        lengths = [int.from_bytes(length, "little") for length in self.share(len(payload).to_bytes(8, "little"))]
        padded = self.share(payload.ljust(max(lengths), b"\0"))
        return [data[:length] for data, length in zip(padded, lengths, strict=True)]

    def decide(self, choice: bool) -> bool:
        """What the first process chose."""
        return self.share(bytes([choice]))[0] == b"\1"

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        mine = numbers.detach().cpu()
        if self.layout.world > 1:
            mine = mine.clone()
            with self.errors(), self._waiting():
                dist.all_reduce(mine, group=self._control)
        return mine

    def errors(self) -> AbstractContextManager[None]:
        """A context in which the failure of a collective call becomes the name of whoever is gone."""
        return self._watch or nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, failure: BaseException | None, __: object) -> None:
        """Leave: in order, or with the words of a failure."""
        if self._watch is not None:
            self._watch.leave(failure)
            if failure is None and dist.is_initialized():
                dist.destroy_process_group()


def _backend(device: torch.device) -> str:
    if device.type != "cuda":
        return "gloo"
    if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return "nccl"
    log.warning(
        "%d GPUs for more trainers: they meet through host memory (NCCL needs one each)", torch.cuda.device_count()
    )
    return "gloo"
