"""Stages 3 and 4 as a service: copies batches to the device and trains on them, in order, each once."""

import logging
import time
from pathlib import Path
from typing import Any, Literal

import torch

from fourstage import rundir
from fourstage.errors import CheckpointError, FourstageError
from fourstage.process import StopFlag
from fourstage.settings import Settings
from fourstage.telemetry import Telemetry
from fourstage.trace import Trace
from fourstage.trainer import checkpoint
from fourstage.trainer.copy import CopyStage, DeviceBatch
from fourstage.trainer.evaluate import ErrorRates
from fourstage.trainer.feed import Feed
from fourstage.trainer.finish import Finish
from fourstage.trainer.inbox import Inbox, StreamInfo
from fourstage.trainer.learner import choose_device, make_learner
from fourstage.trainer.receipt import Receipt
from fourstage.trainer.report import Report
from fourstage.trainer.schedule import learning_rate
from fourstage.views import View
from fourstage.wire.messages import Open

log = logging.getLogger(__name__)

_OPEN_SECONDS = 60.0
_SHORT_EPOCH_SECONDS = 10.0
"""Epochs that follow faster than this share a checkpoint: its three waits for the disk would be felt."""
PINNED = (
    "seed", "batch_size", "remainder", "preset", "augment", "colour_std", "subtract", "train_split", "model", "crop",
)  # fmt: skip
"""Settings that a resumed run must share with its checkpoint, or it would be another run."""


class TrainerService:
    """``run`` to the end, or until the stop flag is set."""

    def __init__(
        self,
        settings: Settings,
        run_dir: Path,
        *,
        sockets: Path,
        resume: bool,
        telemetry: Telemetry,
        trace: Trace,
        stop: StopFlag,
    ) -> None:
        """Build the feed, open the streams, build the network. Raises FourstageErrors of every kind."""
        began = time.monotonic()
        self._settings = settings
        self._run_dir = run_dir
        self._telemetry = telemetry
        self._trace = trace
        self._stop = stop
        self._device = choose_device(settings)
        self._saved = self._last_checkpoint(resume)
        state = self._saved.state if self._saved else None
        self._feed = Feed(
            settings.loader.address,
            name="trainer",
            sockets=sockets,
            receiver=settings.receiver,
            telemetry=telemetry,
        )
        self._inbox = self._feed.open(
            train_request(
                settings, start=state.next_seq if state else 0,
                fingerprint=state.store_fingerprint if state else "",
                identity=bytes.fromhex(state.identity) if state else b"",
            )
        )  # fmt: skip
        self._info = self._opened(self._inbox)
        self._validation = self._open_validation()
        self._receipt = Receipt.from_state(state.receipt, settings.receipt) if state else Receipt(settings.receipt)
        self._learner = make_learner(settings, classes=len(self._info.opened.classes), device=self._device)
        if self._saved is not None:
            model, optimizer = self._learner.tensors()
            checkpoint.load(
                self._saved,
                model=model,
                optimizer=optimizer,
                store_fingerprint=self._info.opened.fingerprint,
                settings=pinned_settings(settings),
            )
        self._cut_lines(state.step if state else 0)
        self._meter = telemetry.meter("train")
        copy_meter = telemetry.meter("copy")
        self._report = Report(
            run_dir,
            telemetry=telemetry,
            copy=copy_meter,
            train=self._meter,
            first_step=state.next_seq if state else 0,
            end=self._info.opened.end,
            began=began,
        )
        finish = self._finish()
        self._copy = self._copy_stage(self._inbox, self._info, finish, "train", copy_meter)
        self._validation_copy: CopyStage | None = None
        if self._validation is not None:
            info = self._opened(self._validation)
            # Its own meter: what validation copies is not the training pipeline's business.
            self._validation_copy = self._copy_stage(self._validation, info, finish, "val", copy_meter)
            self._validation_batches = info.plan.batches_per_epoch
        self._pending: tuple[dict[str, Any], torch.Tensor | None] | None = None
        self._saved_at = time.monotonic()

    def run(self) -> str:
        """Train. Returns how it ended: ``done`` or ``interrupted``."""
        end = self._info.opened.end
        validated_at = None
        item: DeviceBatch | None = None
        step = self._inbox.consumed
        while step < end and not self._stop:
            mark = time.monotonic()
            self._telemetry.turn()
            item = self._copy.next(self._stop)
            if item is None:
                break
            began = time.monotonic()
            self._report.waited(began - mark)
            step = self._train(item, began, began - mark)
            if step % self._info.plan.batches_per_epoch == 0:
                self._end_of_epoch(step)
                validated_at = step
            elif time.monotonic() - self._saved_at > self._settings.train.checkpoint_seconds:
                self._save(step)
            self._report.stages = self._feed.stages
            self._report.status("running", self._inbox.waiting)
        interrupted = step < end
        self._flush()
        if not interrupted and validated_at != step and step:
            self._report.epoch(self._receipt.epoch, self._learner.rates(), self._validate())
        self._save(step)
        state = "interrupted" if interrupted else "done"
        self._report.stages = self._feed.stages
        self._report.status(state, self._inbox.waiting, force=True)
        self._report.summary(
            state,
            receipt={"digest": self._receipt.digest.hex(), "delivered": self._receipt.delivered},
            duplicates=self._inbox.duplicates,
        )
        return state

    def close(self) -> None:
        """Stop the copy stages, close the streams, say goodbye."""
        for stage in (self._copy, self._validation_copy):
            if stage is not None:
                stage.close()
        self._feed.close()
        self._report.close()

    # One step

    def _train(self, item: DeviceBatch, began: float, waited: float) -> int:
        batch = item.batch
        rate = learning_rate(self._settings.train, batch.place.epoch)
        rows = len(batch.keys)
        loss = self._learner.train(item.images, item.labels, step=batch.seq, learning_rate=rate) if rows else None
        self._copy.recycle(item)
        # The loss of the step before is read only now: on a GPU reading it at once would wait for the device.
        self._flush()
        ended = time.monotonic()
        step = batch.seq + 1
        per_epoch = self._info.plan.batches_per_epoch
        self._receipt.add(batch, item.digest, last_of_epoch=step % per_epoch == 0)
        self._inbox.train_on(batch.seq)
        self._meter.done(ended - began, items=rows, size=0)
        self._trace.work("train", batch.seq, began, ended)
        self._trace.stay("train", batch.seq, began, ended)
        line = {
            "step": step, "epoch": batch.place.epoch, "learning_rate": rate, "seconds": ended - began,
            "waited": waited, "rows": rows, "digest": item.digest.hex(),
        }  # fmt: skip
        self._pending = (line, loss)
        return step

    def _flush(self) -> None:
        if self._pending is not None:
            line, loss = self._pending
            self._pending = None
            value = float(loss) if loss is not None else None
            if value is not None and not torch.isfinite(torch.tensor(value)):
                raise FourstageError(
                    f"the loss of step {line['step']} is {value}: training has diverged",
                    hint="lower train.learning_rate, or resume from the last checkpoint with another one",
                )
            self._report.step(line.pop("step"), loss=value, **line)

    def _end_of_epoch(self, step: int) -> None:
        self._flush()
        rates = self._learner.rates()
        for line in self._receipt.lines:
            self._report.receipt(line, self._inbox.duplicates)
        self._receipt.lines.clear()
        self._report.epoch(self._receipt.epoch - 1, rates, self._validate())
        if time.monotonic() - self._saved_at > _SHORT_EPOCH_SECONDS:
            self._save(step)

    def _validate(self) -> ErrorRates | None:
        if self._validation is None or self._validation_copy is None:
            return None
        self._report.status("validating", self._inbox.waiting, force=True)
        for _ in range(self._validation_batches):
            self._telemetry.turn()
            item = self._validation_copy.next(self._stop)
            if item is None:
                return None
            self._learner.test(item.images, item.labels)
            self._validation_copy.recycle(item)
            self._validation.train_on(item.batch.seq)
        return self._learner.rates()

    def _save(self, step: int) -> None:
        if self._saved is not None and self._saved.state.step == step:
            return
        self._flush()
        self._report.flush()
        model, optimizer = self._learner.tensors()
        state = checkpoint.CheckpointState(
            step=step,
            next_seq=step,
            epoch=self._receipt.epoch,
            epoch_samples=self._receipt.samples,
            receipt=dict(self._receipt.state()),
            store_fingerprint=self._info.opened.fingerprint,
            identity=self._inbox.identity.hex(),
            settings=pinned_settings(self._settings),
        )
        path = checkpoint.save(
            self._run_dir, state, model=model, optimizer=optimizer, keep=self._settings.train.keep_checkpoints
        )
        self._saved = checkpoint.Checkpoint(path, state)
        self._saved_at = time.monotonic()

    # Building

    def _last_checkpoint(self, resume: bool) -> checkpoint.Checkpoint | None:
        if not resume:
            return None
        found = checkpoint.latest(self._run_dir)
        if found is None:
            log.warning("%s holds no checkpoint yet: the run begins again", self._run_dir)
            return None
        stored, wanted = found.state.settings, pinned_settings(self._settings)
        different = [name for name in wanted if stored.get(name) != wanted[name]]
        if different:
            name = different[0]
            raise CheckpointError(
                f"{name} = {wanted[name]!r}, but the run began with {stored.get(name)!r}",
                hint="resume with the settings it began with, or begin a new run directory",
            )
        log.info("going on from step %d", found.state.step)
        return found

    def _opened(self, inbox: Inbox) -> StreamInfo:
        deadline = time.monotonic() + _OPEN_SECONDS
        while True:
            try:
                return inbox.opened(0.5)
            except TimeoutError:
                self._telemetry.turn()
                if self._stop:
                    raise FourstageError(f"stopped before the first batch ({self._stop.reason})") from None
                if time.monotonic() > deadline:
                    raise FourstageError(
                        f"no loader at {self._settings.loader.address} has opened the stream in {_OPEN_SECONDS:.0f} s",
                        hint="start one with fourstage loader, or correct loader.address",
                    ) from None

    def _open_validation(self) -> Inbox | None:
        settings = self._settings
        if settings.model.name == "none":
            return None
        if settings.validation_split not in self._info.opened.splits:
            log.info("the store has no split %r: training without validation", settings.validation_split)
            return None
        epochs = settings.train.epochs + 1
        return self._feed.open(validation_request(settings, self._info.opened.fingerprint, epochs=epochs))

    def _finish(self) -> Finish | None:
        settings = self._settings
        if settings.model.name == "none":
            return None
        return Finish(
            self._info.mean,
            crop=settings.augmenter.crop,
            subtract=settings.subtract,
            device=self._device,
            preset=settings.preset,
            colour_std=settings.colour_std if settings.augment else 0.0,
        )

    def _copy_stage(self, inbox: Inbox, info: StreamInfo, finish: Finish | None, label: str, meter: Any) -> CopyStage:
        return CopyStage(
            inbox,
            finish,
            rows=info.opened.largest_rows,
            crop=self._settings.augmenter.crop,
            device=self._device,
            digest_pixels=self._settings.receipt == "pixels" and label == "train",
            meter=meter,
            trace=self._trace,
            label=label,
        )

    def _cut_lines(self, step: int) -> None:
        """Lines that the checkpoint does not know belong to steps that will be taken again."""
        epochs = self._receipt.epoch
        rundir.keep_lines(self._run_dir / rundir.STEPS, lambda line: line["step"] <= step)
        rundir.keep_lines(self._run_dir / rundir.RECEIPT, lambda line: line["epoch"] < epochs)
        rundir.keep_lines(self._run_dir / rundir.EPOCHS, lambda line: line["epoch"] < epochs)


def train_request(settings: Settings, *, start: int, fingerprint: str, identity: bytes) -> Open:
    """The OPEN of the training stream."""
    crop = settings.augmenter.crop
    kind: Literal["random", "centre"] = "random" if settings.augment else "centre"
    std = settings.colour_std if settings.augment else 0.0
    return Open(
        stream=bytes(16), split=settings.train_split, view=View(kind, crop, settings.preset, std),
        batch_size=settings.batch_size, remainder=settings.remainder, shuffle=True, seed=settings.seed,
        rank=0, world=1, start=start, epochs=settings.train.epochs, end=settings.train.max_steps or 0,
        window=0 if settings.window == "auto" else settings.window, fingerprint=fingerprint, identity=identity,
        transport=settings.transport, receiver="", side="",
    )  # fmt: skip


def validation_request(settings: Settings, fingerprint: str, *, epochs: int) -> Open:
    """The OPEN of the validation stream: central crops in the split's own order, again and again."""
    return Open(
        stream=bytes(16), split=settings.validation_split, view=View("centre", settings.augmenter.crop),
        batch_size=settings.validation_batch or settings.batch_size, remainder="keep", shuffle=False,
        seed=settings.seed, rank=0, world=1, start=0, epochs=epochs, end=0, window=0, fingerprint=fingerprint,
        identity=b"", transport=settings.transport, receiver="", side="",
    )  # fmt: skip


def pinned_settings(settings: Settings) -> dict[str, Any]:
    """What must be the same when a run goes on, as JSON values."""
    values = settings.model_dump(mode="json")
    values["crop"] = settings.augmenter.crop
    return {name: values[name] for name in PINNED}
