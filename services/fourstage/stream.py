"""The pipeline's batches in anyone's own training loop."""

import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError('BatchStream needs torch: pip install "fourstage[train]"') from error

from fourstage import ranks
from fourstage.engine.pipeline import Running, Service, start
from fourstage.engine.shared import share
from fourstage.errors import FourstageError, SettingsError
from fourstage.loop import state as states
from fourstage.loop.request import EPOCHS, request, resolve
from fourstage.loop.source import Source
from fourstage.loop.tensors import StreamBatch, Unpack
from fourstage.settings import Settings
from fourstage.store import open_store
from fourstage.trainer.budget import Budget
from fourstage.trainer.finish import Finish
from fourstage.trainer.inbox import FeedBatch
from fourstage.views import Kind
from fourstage.wire.addresses import AUTO
from fourstage.wire.security import load

__all__ = ["BatchStream", "StreamBatch"]

WORKERS = 8


class BatchStream:
    """Batches of a store, made by processes beside this one; each iteration is one epoch.

    ::

        with BatchStream("store", batch_size=128, seed=1) as stream:
            for epoch in range(stream.epoch, 90):
                for batch in stream:
                    train(batch["images"], batch["labels"])

    Order and bytes depend on store, settings, seed, rank and world alone: not on the number of workers, nor on which
    of them were killed and started again. While an epoch ends, the next one's batches are being made.

    A new iteration begins an epoch: after a ``break`` it leaves the rest of the one that was begun and takes the
    next; after ``load_state_dict`` it goes on in the middle. Only the newest iterator works.

    For one thread of one process: not for the workers of a DataLoader, nor for processes forked from this one.
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
        view: Kind = "random",
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

        store: a store's directory; or, for a running service, its loader's address (``tcp://HOST:PORT``,
        ``ipc://PATH``, ``file:PATH``), or another stream's ``address``
        recipe, settings: a recipe's name or TOML file, and settings over it, for example ``{"augmenter.crop": 200}``,
        or ``{"on_corrupt": "skip"}`` to leave out images that cannot be decoded, as many as ``corrupt_count``,
        ``corrupt_share`` and ``corrupt_consecutive`` allow, of this rank's share
        batch_size: images of one batch over all ranks
        workers: augmenters to start, 8 unless given; not with a running service
        view: ``random`` crops and reflections (the central crop if the recipe says ``augment = false``), the
        ``centre`` crop, or the ``full`` stored image
        shuffle: each epoch in an order of its own; unless given, with the random view only
        remainder: ``keep`` an epoch's last, smaller batch or ``drop`` it; unless given, what the recipe says
        rank, world: which share of each batch; unless given, torch.distributed's. Its ranks then share one service,
        which rank 0 starts on their common machine, and all of them must make the stream
        device: where images and labels go
        finish: subtract the mean and add the colour shift: float32 (rows, 3, crop, crop), channels_last
        borrow: the images are a view on the worker's memory, valid until the next batch is asked for; it is mapped
        for reading only, and writing into it ends the process
        timeout: seconds without the loader, or without any augmenter, after which an error says so

        Raises SettingsError for arguments that cannot work, StoreError for a store that cannot be opened and
        PeerLostError where no loader answers.
        """
        running = str(store) if str(store).startswith(("tcp://", "ipc://", "file:")) else ""
        arguments = {"batch_size": batch_size, "seed": seed, "remainder": remainder, "transport": transport}
        resolved = resolve(recipe, settings or {}, arguments, starts_processes=not running)
        if running and workers is not None:
            raise SettingsError(f"workers = {workers} with the running service {running}", hint="leave workers out")
        workers = WORKERS if workers is None else workers
        if not 1 <= workers <= 1024:
            raise SettingsError(f"workers = {workers}", hint="a number from 1 to 1024")
        if borrow and (finish or device is not None):
            raise SettingsError("a borrowed batch stays where its worker made it", hint="leave out device and finish")
        spread = not running and rank is None and world is None and ranks.place()[1] > 1
        if rank is None and world is None:
            rank, world = ranks.place()
        elif rank is None or world is None:
            raise SettingsError(f"rank = {rank} and world = {world}", hint="give both or neither")
        if not 0 <= rank < world:
            raise SettingsError(f"rank = {rank} of world = {world}", hint="ranks count from 0 to world - 1")
        spec = request(resolved, split=split, view=view, shuffle=shuffle, rank=rank, world=world)
        self._borrow = borrow
        self._begun = False
        """A batch of the epoch was handed out that the next iteration must not go on with."""
        self._in_hand: FeedBatch | None = None
        self._pass = 0
        self._pid = os.getpid()
        with ExitStack() as stack:
            self._service: Service
            if running:
                self._service = Running(running, resolved)
            else:
                path = Path(store).absolute()
                open_store(path)
                self._service = (share if spread else start)(path, resolved, workers=workers)
            stack.callback(self._service.close)
            # Processes of this stream's own speak through Unix sockets.
            security = load(resolved.keys, "trainer") if running else None
            trainers = resolved.loader.trainers if running else AUTO
            self._source = Source(
                self._service, spec, trainers=trainers, receiver=resolved.receiver, timeout=timeout, security=security
            )
            stack.callback(self._source.close)
            self._budget = self._budget_before = Budget.of(resolved, self._source.info.opened.samples)
            self._unpack = _unpack(self._source, resolved, device or "cpu", finish=finish, borrow=borrow)
            self._resources = stack.pop_all()
        self._finalizer = weakref.finalize(self, _collect, self._resources, self._pid)

    # What it is

    def __len__(self) -> int:
        """Batches of one epoch."""
        return self._source.info.plan.batches_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the batch in hand, or of the one that comes next."""
        return (self._source.next - (self._in_hand is not None)) // len(self)

    @property
    def samples(self) -> int:
        """Samples of the split."""
        return self._source.info.opened.samples

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that the labels count."""
        return self._source.info.opened.classes

    @property
    def skipped(self) -> tuple[str, ...]:
        """Keys of the samples that the batch in hand goes without, because they cannot be decoded."""
        return tuple(sample.key for sample in self._in_hand.skipped) if self._in_hand else ()

    @property
    def address(self) -> str:
        """The loader's: further streams may share it, and its augmenters with it."""
        return self._service.address

    # One epoch after the other

    def __iter__(self) -> Iterator[StreamBatch]:
        """One epoch, or the rest of one after ``load_state_dict``."""
        self._check_usable()
        self._let_go()
        if self._begun and self._source.next % len(self):
            self._source.seek((self._source.next // len(self) + 1) * len(self))
        self._begun = False
        self._pass += 1
        return _Pass(self, self._pass)

    def take(self, number: int) -> StreamBatch | None:
        """The next batch of pass ``number``; None once its epoch is over. Called by the iterator of that pass."""
        self._check_usable()
        if number != self._pass:
            raise FourstageError("this iterator was replaced by a newer one", hint="use one iterator at a time")
        self._let_go()
        if self._begun and self._source.next % len(self) == 0:
            self._begun = False
            return None
        batch = self._source.wait()
        try:
            budget = self._budget.charged(batch.place, batch.skipped)
            tensors = self._unpack(batch)
        finally:
            if not self._borrow:
                batch.release()
        self._source.next += 1
        self._budget_before, self._budget = self._budget, budget
        self._in_hand = batch
        self._begun = True
        return tensors

    # The place in it

    def state_dict(self, *, again: bool = False) -> dict[str, Any]:
        """Where the loop is: plain numbers and text, the same on every rank but for what this rank has left out.

        The batch in hand counts as used; with ``again`` it counts as unused, and is the first to come after
        ``load_state_dict``.
        """
        unused = again and self._in_hand is not None
        budget = self._budget_before if unused else self._budget
        return states.save(
            self._source.spec, seq=self._source.next - unused, batches_per_epoch=len(self),
            identity=self._source.identity, budget=budget.state(),
        )  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, also in the middle of an iteration: the iterator in use then ends with its epoch.

        Raises CheckpointError that names what differs: a store, a setting, a seed, a world or a decoder.
        """
        self._check_usable()
        seq, identity = states.restore(
            state, self._source.spec, batches_per_epoch=len(self), epochs=EPOCHS, identity=self._source.identity
        )
        budget = self._budget.restored(state.get("budget", {}))
        self._let_go()
        self._source.seek(seq, identity)
        self._budget = self._budget_before = budget
        self._begun = False

    # The end

    def close(self) -> None:
        """Give everything back and end the processes that were started; a second call does nothing."""
        if self._finalizer.detach() is not None and os.getpid() == self._pid:
            self._let_go()
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _let_go(self) -> None:
        """The loop is done with the batch in hand."""
        batch, self._in_hand = self._in_hand, None
        if batch is not None:
            if self._borrow:
                batch.release()
            self._source.used(batch)

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise FourstageError("a BatchStream does not survive a fork", hint="make it in the process that uses it")
        if not self._finalizer.alive:
            raise FourstageError("the BatchStream is closed")


class _Pass(Iterator[StreamBatch]):
    """One epoch of a stream."""

    def __init__(self, stream: BatchStream, number: int) -> None:
        self._stream = stream
        self._number = number
        self._over = False

    def __next__(self) -> StreamBatch:
        batch = None if self._over else self._stream.take(self._number)
        if batch is None:
            self._over = True
            raise StopIteration
        return batch


def _unpack(source: Source, settings: Settings, device: str | torch.device, *, finish: bool, borrow: bool) -> Unpack:
    where = torch.device(device)
    finishing = (
        Finish(
            source.info.mean,
            source.spec.view,
            subtract=settings.subtract,
            device=where,
            mean_place=settings.mean_place,
            colour_divide=settings.colour_divide,
        )
        if finish
        else None
    )
    return Unpack(device=where, finish=finishing, borrow=borrow)


def _collect(resources: ExitStack, pid: int) -> None:
    """Nobody closed the stream and it is garbage now, or the interpreter ends."""
    if os.getpid() != pid:
        return
    if threading.current_thread() is threading.main_thread():
        resources.close()
    else:
        # Garbage may be found amid one of the stream's own threads, which cannot wait for itself.
        threading.Thread(target=resources.close, name="fourstage-close", daemon=False).start()
