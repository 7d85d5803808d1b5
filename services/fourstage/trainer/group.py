"""The processes of one training: which part of the network and of each batch is whose, and how they reach one another.

``columns`` gives each of two processes half of the kernels (paper, section 3.2); ``data`` gives each a share of every
batch; replicas of column pairs do both. Ranks count columns first: 0 and 1 are the columns of the first replica.
"""

import datetime
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fourstage.errors import FourstageError, SettingsError
from fourstage.process import StopFlag
from fourstage.settings import Settings
from fourstage.trainer.columns import COLUMNS, Column
from fourstage.trainer.watch import Watch

log = logging.getLogger(__name__)

_NEVER = datetime.timedelta(days=30)
"""Of collective calls: whoever waits for data may wait for long, and ``Watch`` knows who is dead."""
_TEXT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """One process's place among ``world``. columns: processes that share one network, 1 or 2."""

    rank: int = 0
    world: int = 1
    columns: int = 1

    @property
    def column(self) -> int:
        """Which half of the kernels is this process's."""
        return self.rank % self.columns

    @property
    def replica(self) -> int:
        """Which share of each batch is this process's."""
        return self.rank // self.columns

    @property
    def replicas(self) -> int:
        """Shares that each batch is cut into."""
        return self.world // self.columns


def layout(settings: Settings, environment: Mapping[str, str]) -> Layout:
    """This process's place, from the variables that torchrun sets (RANK, WORLD_SIZE).

    Raises SettingsError where they do not fit the settings.
    """
    rank, world = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    hint = "start them by torchrun --nproc-per-node N -m fourstage trainer, or all of it by fourstage run"
    if settings.parallel == "none":
        if world > 1:
            raise SettingsError(
                f"{world} trainers were started, parallel = 'none' takes one", hint="set parallel to columns or data"
            )
        return Layout()
    columns = COLUMNS if settings.parallel == "columns" else 1
    if world % columns or world < columns * (settings.replicas or 1):
        raise SettingsError(f"parallel = {settings.parallel!r} with {world} trainers", hint=hint)
    if settings.replicas is not None and world != columns * settings.replicas:
        raise SettingsError(f"replicas = {settings.replicas} with {world} trainers", hint=hint)
    return Layout(rank, world, columns)


class Group:
    """Calls in which every process of a training takes part, in the same order. Alone, they return at once."""

    def __init__(self, place: Layout, device: torch.device, stop: StopFlag) -> None:
        """Meet the others; raises FourstageError where one of them is gone."""
        self.layout = place
        self.column: Column | None = None
        self.replicas: dist.ProcessGroup | None = None
        self._watch: Watch | None = None
        if place.world == 1:
            return
        self._watch = Watch.of_environment(place.rank, place.world, stop)
        store, _, _ = next(rendezvous("env://", timeout=_NEVER))
        with self.errors():
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
        with self.errors():
            dist.all_gather(theirs, mine, self._control)
        return [tensor.numpy().tobytes() for tensor in theirs]

    def tell(self, text: str) -> list[str]:
        """Everybody's text by rank."""
        raw = text.encode()
        if len(raw) > _TEXT_BYTES:
            raise FourstageError(f"{text!r} has more than {_TEXT_BYTES} bytes")
        return [told.rstrip(b"\0").decode() for told in self.share(raw.ljust(_TEXT_BYTES, b"\0"))]

    def decide(self, choice: bool) -> bool:
        """What the first process chose."""
        return self.share(bytes([choice]))[0] == b"\1"

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        mine = numbers.detach().cpu()
        if self.layout.world > 1:
            mine = mine.clone()
            with self.errors():
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
