"""Stages 3 and 4 as a service: copies batches to the device and trains on them, in order, each once."""

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fourstage.by_hand import RATE
from fourstage.errors import FourstageError, StoppedError, of_the_machine
from fourstage.order import BatchPlan
from fourstage.process import StopFlag
from fourstage.settings import Settings
from fourstage.telemetry import StageMeter, Telemetry
from fourstage.trace import Trace
from fourstage.trainer import checkpoint
from fourstage.trainer.budget import nothing_left
from fourstage.trainer.copy import CopyStage, DeviceBatch
from fourstage.trainer.council import Decision, Vote, decide
from fourstage.trainer.encoded import Decoding
from fourstage.trainer.finish import Finish
from fourstage.trainer.group import Group
from fourstage.trainer.inbox import StreamInfo
from fourstage.trainer.intake import Intake
from fourstage.trainer.learner import make_learner
from fourstage.trainer.rates import ErrorRates
from fourstage.trainer.receipt import Receipt, batch_digest, short_digests
from fourstage.trainer.relay import Batches
from fourstage.trainer.report import Report
from fourstage.trainer.requests import train_request, validation_request
from fourstage.trainer.resume import cut_lines, last_checkpoint, pinned_settings
from fourstage.trainer.schedule import Schedule
from fourstage.trainer.skipping import Skipping

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
"""Between two looks for a learning rate by hand."""
_SHORT_EPOCH_SECONDS = 10.0
"""Epochs that follow faster than this share a checkpoint: its three waits for the disk would be felt."""


class _InterruptedError(Exception):
    """The run was told to stop amid a validation."""


class TrainerService:
    """``run`` to the end, or until the stop flag is set: alone, or as one of a group that does all of it together."""

    def __init__(
        self,
        settings: Settings,
        run_dir: Path,
        *,
        group: Group,
        device: torch.device,
        intake: Intake,
        decoding: Decoding | None,
        name: str,
        resume: bool,
        telemetry: Telemetry,
        stop: StopFlag,
    ) -> None:
        """Open the streams, build the network. device: as ``choose_device`` prepared it. ``close`` closes the intake.

        Raises FourstageErrors of every kind.
        """
        began = time.monotonic()
        self._settings = settings
        self._run_dir = run_dir
        self._group = group
        self._place = group.layout
        self._leads = group.layout.rank == 0
        self._telemetry = telemetry
        self._trace = Trace(run_dir, rank=group.layout.rank, name=name, always=settings.trace)
        self._stop = stop
        self._device = device
        self._decoding = decoding
        saved = last_checkpoint(settings, run_dir) if resume else None
        state = saved.state if saved else None
        self._step = self._saved_step = state.step if state else 0
        self._check_agreement()
        self._intake = intake
        self._batches, self._info = intake.open(
            train_request(
                settings, self._place, start=self._step,
                fingerprint=state.store_fingerprint if state else "",
                identity=bytes.fromhex(state.identity) if state else b"",
            ),
            group.tell,
        )  # fmt: skip
        samples = self._info.opened.samples
        self._plan = BatchPlan(samples, settings.batch_size, settings.remainder)
        """Of the batches that all trainers share."""
        self._skipping = self._skipping_of(settings.train_split, self._info, state.budget if state else {})
        self._validation: tuple[Batches, StreamInfo] | None = None
        self._validation_skipping: Skipping | None = None
        if settings.model.name == "none":
            pass
        elif settings.validation_split not in self._info.opened.splits:
            log.info("the store has no split %r: training without validation", settings.validation_split)
        else:
            request = validation_request(
                settings, self._place, self._info.opened.fingerprint, epochs=settings.train.epochs + 1
            )
            self._validation = intake.open(request, group.tell)
            self._validation_skipping = self._skipping_of(settings.validation_split, self._validation[1], {})
        self._receipt = Receipt.from_state(state.receipt, settings.receipt) if state else Receipt(settings.receipt)
        self._schedule = Schedule.from_state(settings.train, state.schedule if state else {})
        self._unvalidated = list(state.unvalidated) if state else []
        """The training error of an epoch that is over and whose validation was interrupted; else nothing."""
        self._classes = len(self._info.opened.classes)
        self._learner = make_learner(settings, classes=self._classes, device=device, group=group)
        if saved is not None:
            fingerprint = self._info.opened.fingerprint
            pinned = pinned_settings(settings)
            self._learner.load(
                lambda model, optimizer: checkpoint.load(
                    saved, model=model, optimizer=optimizer, store_fingerprint=fingerprint, settings=pinned
                )
            )
            self._learner.begin_epoch(saved.state.trained)
        if self._leads:
            planned = self._receipt.delivered + self._receipt.skipped if settings.receipt == "pixels" else 0
            over = self._receipt.epoch
            validated = over - len(self._unvalidated)
            cut_lines(run_dir, step=self._step, epochs=over, validated=validated, samples=planned)
            may_skip = self._skipping.most if settings.on_corrupt == "skip" else 0
            telemetry.gauge("fourstage_corrupt_budget_samples").set(may_skip)
        self._meter = telemetry.meter("train")
        copy_meter = telemetry.meter("copy")
        self._report = Report(
            run_dir if self._leads else None,
            rank=self._place.rank,
            replicas=self._place.replicas,
            decode=settings.decode,
            telemetry=telemetry,
            copy=copy_meter,
            train=self._meter,
            first_step=self._step,
            end=self._info.opened.end,
            began=began,
        )
        self._copy = self._copy_stage(self._batches, self._info, copy_meter, digest_pixels=settings.receipt == "pixels")
        self._validation_copy: CopyStage | None = None
        if self._validation is not None:
            self._validation_copy = self._copy_stage(*self._validation, copy_meter, digest_pixels=False)
        self._pending: tuple[dict[str, Any], torch.Tensor | None] | None = None
        self._saved_at = self._waiting_since = time.monotonic()
        self._look_at = 0.0

    def run(self) -> str:
        """Train. Returns how it ended: ``done`` or ``interrupted``; where it raises, its status says ``failed``."""
        try:
            return self._run()
        except Exception as error:
            if not isinstance(error, StoppedError):
                self._report.failure = str(of_the_machine(error) or error) or repr(error)
                # A disk that is full is not to hide why the run has failed, which it may be itself.
                with contextlib.suppress(OSError, FourstageError):
                    self._tell("failed", force=True)
            raise

    def _run(self) -> str:
        end = self._info.opened.end
        if self._unvalidated:
            rates, self._unvalidated = self._unvalidated[0], []
            # The checkpoint that we go on from does not know it yet.
            self._saved_step = -1
            self._close_epoch(rates)
        while self._step < end:
            self._waiting_since = mark = time.monotonic()
            self._turn()
            item = self._copy.next(self._stop, self._while_waiting)
            decision = self._agree(item, self._info)
            if item is None or not decision.go:
                break
            came = time.monotonic()
            self._report.waited(came - self._waiting_since, came=True)
            if decision.rate is not None:
                self._set_by_hand(decision.rate)
            self._train(item, decision, time.monotonic(), came - mark)
            if self._step % self._plan.batches_per_epoch == 0:
                self._end_of_epoch()
            elif decision.save:
                self._save()
            self._tell("running")
        interrupted = self._step < end or bool(self._unvalidated)
        self._flush()
        if not interrupted and self._step % self._plan.batches_per_epoch:
            rates = self._training_rates()
            try:
                self._report.epoch(self._receipt.epoch, rates, self._validate())
            except _InterruptedError:
                interrupted = True
        self._save()
        state = "interrupted" if interrupted else "done"
        duplicates = int(self._group.total(torch.tensor(self._batches.duplicates)))
        self._tell(state, force=True)
        self._report.summary(
            state,
            receipt={
                "digest": self._receipt.digest.hex(),
                "delivered": self._receipt.delivered,
                "corrupt": self._receipt.skipped,
            },
            duplicates=duplicates,
            exchanged=self._exchanged(),
        )
        return state

    def close(self) -> None:
        """Stop the copy stages, close the streams, say goodbye."""
        self._trace.close()
        for stage in (self._copy, self._validation_copy):
            if stage is not None:
                stage.close()
        self._intake.close()
        self._report.close()

    def _exchanged(self) -> dict[str, int] | None:
        """Exchanges between two columns since this process started, and the bytes that all sent in them."""
        if self._group.column is None:
            return None
        mine = self._group.column.traffic
        sent = self._group.total(torch.tensor([mine.forward_bytes, mine.backward_bytes])).tolist()
        return {
            "exchanges": mine.exchanges, "forward_bytes": sent[0], "adjoints": mine.adjoints, "backward_bytes": sent[1],
        }  # fmt: skip

    # One step

    def _agree(self, item: DeviceBatch | None, info: StreamInfo) -> Decision:
        """What all trainers make of the batch that comes next; waits until each has it or was told to stop."""
        rate = self._rate_by_hand() if self._leads and info is self._info else None
        vote = Vote(
            ready=item is not None,
            stop=bool(self._stop),
            save=time.monotonic() - self._saved_at > self._settings.train.checkpoint_seconds,
            rate=math.nan if rate is None else rate,
            samples=item.samples if item is not None else b"",
        )
        if self._place.world == 1:
            return decide([vote], 1)
        largest = -(-self._largest_batch(info) // self._place.replicas)
        votes = self._group.share(vote.pack(largest))
        return decide([Vote.unpack(data) for data in votes], self._place.columns)

    def _rate_by_hand(self) -> float | None:
        """What somebody has asked for; looked at not before every step, for steps may take a millisecond."""
        if (now := time.monotonic()) < self._look_at:
            return None
        self._look_at = now + _LOOK_SECONDS
        return RATE.look(self._run_dir)

    def _set_by_hand(self, rate: float) -> None:
        """From the next step on. The request goes once a checkpoint holds it: who goes on finds one or the other."""
        self._schedule.set_by_hand(self._step, rate, epoch=self._plan.place(self._step).epoch)
        log.info("learning rate set by hand to %g before step %d", rate, self._step + 1)
        self._saved_step = -1
        self._save()
        if self._leads:
            RATE.done(self._run_dir)

    def _train(self, item: DeviceBatch, decision: Decision, began: float, waited: float) -> None:
        batch = item.batch
        whole = self._plan.place(batch.seq)
        skipped = self._skipping.charge(batch, whole, decision)
        rows = whole.rows - len(skipped)
        if not rows:
            raise nothing_left(batch.seq, skipped)
        rate = self._schedule.rate(whole.epoch)
        # Closed up, so that dropout and loss are those of a batch that was planned without what was skipped.
        first_row = decision.closed_up(batch.place.first - whole.first)
        loss = self._learner.train(item.images, item.labels, step=batch.seq, first_row=first_row, rows=rows, rate=rate)
        self._copy.recycle(item)
        if (column := self._group.column) is not None:
            self._report.exchanged(column.traffic.forward_bytes, column.traffic.backward_bytes)
        # The loss of the step before is read only now: on a GPU reading it at once would wait for the device.
        self._flush()
        ended = time.monotonic()
        self._step = batch.seq + 1
        digest = batch_digest(batch.seq, decision.samples)
        corrupt = [sample.key for sample in skipped]
        self._receipt.add(digest, rows, corrupt, last_of_epoch=self._step % self._plan.batches_per_epoch == 0)
        self._batches.train_on(batch.seq)
        self._meter.done(ended - began, items=len(batch.keys), size=0)
        self._passed(item, self._settings.train_split, began, ended)
        line = {
            "step": self._step, "epoch": whole.epoch, "learning_rate": rate, "seconds": ended - began,
            "waited": waited, "rows": rows, "corrupt": corrupt, "digest": digest.hex(),
            "samples": short_digests(decision.samples) if self._receipt.covers == "pixels" else b"",
        }  # fmt: skip
        self._pending = (line, loss)

    def _flush(self) -> None:
        """Report the step before; its loss is the sum of every trainer's share."""
        if self._pending is not None:
            line, loss = self._pending
            self._pending = None
            value = None if loss is None else float(self._group.total(loss.double()))
            if value is not None:
                _check_finite(f"the loss of step {line['step']}", value)
            self._report.step(line.pop("step"), loss=value, **line)

    def _end_of_epoch(self) -> None:
        self._flush()
        rates = self._training_rates()
        self._learner.begin_epoch()
        for line in self._receipt.lines:
            self._report.receipt(line, self._batches.duplicates)
        self._receipt.lines.clear()
        self._close_epoch(rates)

    def _close_epoch(self, rates: ErrorRates | None) -> None:
        """Validate and judge the epoch that is over. Interrupted, all of it is left to the run that goes on: whether
        the learning rate drops may depend on it."""
        try:
            validation = self._validate()
        except _InterruptedError:
            self._unvalidated = [rates]
            return
        epoch = self._receipt.epoch - 1
        self._report.epoch(epoch, rates, validation)
        judged = rates if self._validation is None else validation
        self._schedule.after_epoch(epoch, judged.top1_error if judged else None)
        if self._group.decide(time.monotonic() - self._saved_at > _SHORT_EPOCH_SECONDS):
            self._save()

    def _validate(self) -> ErrorRates | None:
        """Raises _InterruptedError where the run is told to stop, FourstageError where the loss is no number."""
        if self._validation is None or self._validation_copy is None or self._validation_skipping is None:
            return None
        stream, info = self._validation
        plan = BatchPlan(info.opened.samples, info.plan.batch_size, info.plan.remainder)
        self._validation_skipping.begin()
        self._tell("validating", force=True)
        for _ in range(info.plan.batches_per_epoch):
            self._turn()
            item = self._validation_copy.next(self._stop, self._turn)
            decision = self._agree(item, info)
            if not decision.go or item is None:
                raise _InterruptedError
            self._validation_skipping.charge(item.batch, plan.place(item.batch.seq), decision)
            began = time.monotonic()
            self._learner.test(item.images, item.labels)
            self._validation_copy.recycle(item)
            self._passed(item, stream.spec.split, began, time.monotonic())
            stream.train_on(item.batch.seq)
        rates = ErrorRates.of(self._learner.tested(), self._classes)
        if rates is not None:
            _check_finite(f"the validation loss after step {self._step}", rates.loss)
        return rates

    def _training_rates(self) -> ErrorRates | None:
        """Of what was trained on in this epoch."""
        return ErrorRates.of(self._learner.trained(), self._classes)

    # What is said of it

    def _turn(self) -> None:
        """The loop turns, also while it waits."""
        self._telemetry.turn()
        self._trace.turn(time.monotonic())

    def _while_waiting(self) -> None:
        """No batch has come yet: the wait is told as it grows."""
        self._turn()
        now = time.monotonic()
        self._report.waited(now - self._waiting_since)
        self._waiting_since = now
        self._tell("running")

    def _tell(self, state: str, *, force: bool = False) -> None:
        self._report.stages = self._intake.stages
        self._report.on_the_way = self._intake.on_the_way
        self._report.waiting = self._intake.waiting
        self._report.skipped = self._receipt.skipped
        self._report.status(state, self._batches.waiting, force=force)

    def _passed(self, item: DeviceBatch, split: str, began: float, ended: float) -> None:
        """A batch has gone through all stages."""
        passage = item.batch.passage
        passage.trained_from, passage.trained_to = began, ended
        for stage, moment in (("copy", passage.copied_to), ("train", ended)):
            if (age := passage.age(moment)) is not None:
                self._telemetry.histogram("fourstage_batch_age_seconds", stage).observe(max(0.0, age))
        self._trace.batch(item.batch.seq, split, passage)

    def _save(self) -> None:
        """Write a checkpoint; every trainer calls it, the first one writes."""
        if self._saved_step == self._step:
            return
        self._flush()
        # What the checkpoint counts must be there with it.
        self._report.flush(durable=True)
        model, optimizer = self._learner.state()
        trained = self._learner.trained()
        if self._leads:
            state = checkpoint.CheckpointState(
                step=self._step,
                next_seq=self._step,
                epoch=self._receipt.epoch,
                epoch_samples=self._receipt.samples,
                receipt=dict(self._receipt.state()),
                store_fingerprint=self._info.opened.fingerprint,
                identity=self._batches.identity.hex(),
                settings=pinned_settings(self._settings),
                schedule=self._schedule.state(),
                unvalidated=self._unvalidated,
                budget=self._skipping.state(),
                trained=trained,
            )
            began = time.monotonic()
            checkpoint.save(
                self._run_dir, state, model=model, optimizer=optimizer, keep=self._settings.train.keep_checkpoints
            )
            self._report.checkpoint(self._step, time.monotonic() - began)
        self._saved_step = self._step
        self._saved_at = time.monotonic()

    # Building

    def _check_agreement(self) -> None:
        """All trainers must go on from the same step."""
        steps = {int(text) for text in self._group.tell(str(self._step))}
        if len(steps) > 1:
            raise FourstageError(
                f"the trainers found checkpoints of different steps: {sorted(steps)}",
                hint="every trainer must see the same run directory",
            )

    def _skipping_of(self, split: str, info: StreamInfo, state: Mapping[str, Any]) -> Skipping:
        return Skipping(
            self._settings, split=split, samples=info.opened.samples, state=state, group=self._group,
            telemetry=self._telemetry,
        )  # fmt: skip

    def _largest_batch(self, info: StreamInfo) -> int:
        return min(info.plan.batch_size, info.opened.samples)

    def _copy_stage(self, batches: Batches, info: StreamInfo, meter: StageMeter, *, digest_pixels: bool) -> CopyStage:
        settings = self._settings
        finish = None
        if settings.model.name != "none":
            finish = Finish(
                info.mean,
                batches.spec.view,
                subtract=settings.subtract,
                device=self._device,
                mean_place=settings.mean_place,
                colour_divide=settings.colour_divide,
            )
        return CopyStage(
            batches,
            finish,
            rows=info.opened.largest_rows,
            crop=settings.augmenter.crop,
            device=self._device,
            digest_pixels=digest_pixels,
            meter=meter,
            label=batches.spec.split,
            copy_seconds=settings.train.copy_seconds,
            decoder=self._decoding.decoder() if self._decoding else None,
        )


def _check_finite(what: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise FourstageError(
            f"{what} is {loss}: training has diverged",
            hint="lower train.learning_rate, or resume from the last checkpoint with another one",
        )
