"""The pipeline's batches in anyone's own training loop."""

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError('fourstage.BatchStream needs torch: pip install "fourstage[train]"') from error

from fourstage import ranks
from fourstage.engine.pipeline import Pipeline
from fourstage.errors import SettingsError
from fourstage.process import sockets_folder
from fourstage.store import open_store
from fourstage.trainer.inbox import FeedBatch
from fourstage.trainer.tensors import StreamBatch

__all__ = ["BatchStream", "StreamBatch"]

log = logging.getLogger(__name__)

DEFAULT_WORKERS = 8
EPOCHS = 1 << 20
"""So many that no loop comes to their end, and few enough that every batch has a number."""
_TURN_SECONDS = 0.2
_SECTIONS = ("augmenter", "loader", "metrics")
_SETTINGS = (
    "augment", "batch_size", "colour_std", "preset", "receiver", "remainder", "seed", "sockets", "subtract",
    "transport", "window", "augmenter.crop",
)  # fmt: skip
"""What a stream takes besides the sections of the processes that it starts."""


class BatchStream:
    """Batches of a store, made by processes beside this one; each iteration is one epoch.

    ::

        with BatchStream("store", batch_size=128, seed=1, workers=8) as stream:
            for epoch in range(stream.epoch, 90):
                for batch in stream:
                    train(batch["images"], batch["labels"])

    The bytes and their order depend on store, settings, seed, rank and world alone: not on the number of workers,
    nor on which of them were killed and started again. Batches of the next epoch are made while this one ends.

    A new iteration begins an epoch: after a ``break`` it abandons the rest of the one that was begun and goes to the
    next. After ``load_state_dict`` it goes on in the middle. Only the newest iterator is valid.

    One thread and one process: not for the workers of a DataLoader, nor for a process forked from this one.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        recipe: str = "alexnet",
        batch_size: int | None = None,
        seed: int | None = None,
        workers: int | None = None,
        settings: Mapping[str, Any] | None = None,
        split: str = "train",
        view: Literal["random", "centre", "full"] = "random",
        shuffle: bool | None = None,
        remainder: Literal["keep", "drop"] | None = None,
        transport: Literal["arena", "inline"] | None = None,
        rank: int | None = None,
        world: int | None = None,
        device: str | torch.device | None = None,
        finish: bool = False,
        borrow: bool = False,
        timeout: float = 60.0,
    ) -> None:
        """Start a loader and augmenters, or find running ones, and open the stream.

        store: a store's directory; or, to use a running service, its loader's address: ``tcp://HOST:PORT``,
        ``ipc://PATH`` or ``file:PATH``; also another stream's ``address``
        recipe, settings: a recipe's name or TOML file, and single settings over it: ``{"augmenter.crop": 200}``
        batch_size: images of one batch over all ranks
        workers: augmenters to start, 8 unless given; not with a running service
        view: ``random`` crops and reflections (central crops where the recipe sets ``augment = false``), the
        ``centre`` crop, or the ``full`` stored image
        shuffle: another order in each epoch; unless given, only with the random view
        remainder: ``keep`` a smaller last batch, or ``drop`` it; unless given, as the recipe says
        rank, world: this process's rows of each batch; unless given, those of torch.distributed. Then ranks that
        name a store share one service, which rank 0 starts, and all of them must construct the stream
        device: where images and labels go
        finish: subtract the mean, add the colour shift: float32 (rows, 3, crop, crop), channels_last
        borrow: images are a view on the worker's memory, valid until the next batch is asked for, never to be
        written into: the memory is read-only and the process would die
        timeout: seconds that the loader, or every augmenter, may be away before an error says so

        Raises SettingsError for arguments that cannot work, StoreError for a store that cannot be opened and
        PeerLostError for a service that does not answer.
        """
        address = str(store) if str(store).startswith(("tcp://", "ipc://", "file:")) else ""
        given = {"batch_size": batch_size, "seed": seed, "remainder": remainder, "transport": transport}
        self._settings = _resolve(recipe, settings or {}, given, running=bool(address))
        if address and workers is not None:
            raise SettingsError(
                f"workers = {workers} with the running service {address}", hint="scale that service, or name a store"
            )
        if borrow and (finish or device is not None):
            raise SettingsError("borrow = True is the worker's own memory", hint="leave device and finish out")
        shared = rank is None and world is None and ranks.place()[1] > 1
        rank, world = ranks.place() if rank is None and world is None else (rank or 0, world or 1)
        if not 0 <= rank < world:
            raise SettingsError(f"rank = {rank} with world = {world}", hint="0 <= rank < world")
        kind = "centre" if view == "random" and not self._settings.augment else view
        self._timeout = timeout
        self._pipeline: Pipeline | None = None
        self._pass = 0
        self._in_hand: FeedBatch | None = None
        self._pid = os.getpid()
        with ExitStack() as stack:
            if address:
                self._address, folder = address, stack.enter_context(sockets_folder(self._settings.sockets))
            else:
                size = open_store(store).size
