"""What a trainer tells: a line per step and epoch, the live status, the summary, the metrics."""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fourstage import rundir
from fourstage.metrics import BOTTLENECKS, RUN_STATES
from fourstage.telemetry import StageMeter, Telemetry
from fourstage.trainer.rates import ErrorRates
from fourstage.verdict import STAGE_NAMES, Reading, Shares, Verdict, judge, shares
from fourstage.wire.messages import Stages, Usage

log = logging.getLogger(__name__)

_STATUS_SECONDS = 0.5
_RECENT_SECONDS = 10.0
"""Rates and shares of the live view look back this far."""
_SETTLED_SECONDS = 5.0
"""What the run waits for must have been the same for this long to be worth a line in the log."""


class Report:
    """Writes the run directory's lines and whole files, and sets the metrics of the train stage.

    Of several trainers only the first writes files: the others have no ``run_dir``.
    """

    def __init__(
        self,
        run_dir: Path | None,
        *,
        rank: int,
        replicas: int,
        decode: Literal["augmenter", "device"],
        telemetry: Telemetry,
        copy: StageMeter,
        train: StageMeter,
        first_step: int,
        end: int,
        began: float,
    ) -> None:
        self._run_dir = run_dir
        self._telemetry = telemetry
        self._copy = copy
        self._train = train
        self._first = first_step
        self._end = end
        self._rank = str(rank)
        self._replicas = replicas
        self._decode = decode
        self._steps, self._epochs, self._receipt = (
            rundir.Lines(run_dir / name if run_dir else None) for name in (rundir.STEPS, rundir.EPOCHS, rundir.RECEIPT)
        )
        self._samples = rundir.Samples(run_dir / rundir.SAMPLES if run_dir else None)
        self._began = began
        self._ended = began
        """Of the last step: checkpoints and validation after it are not the pipeline's time."""
        self._first_batch: float | None = None
        self._waited = 0.0
        self._images = 0
        self._exchanged = {"forward": 0, "backward": 0}
        self._readings: deque[tuple[int, int, Reading]] = deque()
        """Step, images and counters of the last seconds."""
        self._first_reading = Reading()
        self._said = ("", began)
        """What the log was last told that the run waits for, and since when it is something else."""
        self._last: dict[str, Any] = {}
        self._rates: dict[str, dict[str, Any]] = _last_rates(run_dir) if run_dir else {}
        """By split, of the last epoch, which may be over before this process began."""
        self._next_status = 0.0
        self.stages: Stages | None = None
        self.waiting = ""
        """Why no batches can come, in words."""
        self.failure = ""
        """Why the run has ended before its end, in words."""
        self.skipped = 0
        """Samples of the whole run that could not be decoded, in every epoch again."""
        self.on_the_way: Mapping[str, float] = {}
        """Seconds that batches were between two processes, by way, summed."""
        telemetry.gauge("fourstage_run_steps").set(end)
        telemetry.gauge("fourstage_run_step").set(first_step)

    def waited(self, seconds: float, *, came: bool = False) -> None:
        """The train stage waited for a batch, which came or did not; before the first one that is start-up, not a
        stall."""
        if self._first_batch is None:
            if came:
                self._first_batch = time.monotonic()
                self._first_reading = self._reading(self._first_batch)
            return
        self._waited += seconds
        self._train.waited(seconds, "upstream")
        self._telemetry.counter("fourstage_data_wait_seconds_total", self._rank).inc(seconds)

    def step(
        self, step: int, *, epoch: int, loss: float | None, learning_rate: float, seconds: float, waited: float,
        rows: int, corrupt: Sequence[str], digest: str, samples: bytes,
    ) -> None:  # fmt: skip
        """A step is over. step: counted from 1; rows: that it was trained on; corrupt: keys of those that it was not;
        samples: the short digests of all, or nothing."""
        self._images += rows
        self._ended = time.monotonic()
        line: dict[str, Any] = {
            "step": step, "epoch": epoch, "loss": loss, "learning_rate": learning_rate, "seconds": round(seconds, 6),
            "data_wait_seconds": round(waited, 6), "digest": digest,
        }  # fmt: skip
        if corrupt:
            line["corrupt"] = list(corrupt)
        self._steps.add(line)
        self._samples.add(samples)
        self._last = line
        self._telemetry.counter("fourstage_steps_total").inc()
        self._telemetry.gauge("fourstage_run_step").set(step)
        self._telemetry.gauge("fourstage_run_epoch").set(epoch)
        self._telemetry.histogram("fourstage_step_seconds", self._rank).observe(seconds)
        self._telemetry.gauge("fourstage_learning_rate").set(learning_rate)
        if loss is not None:
            self._telemetry.gauge("fourstage_loss").set(loss)

    def checkpoint(self, step: int, seconds: float) -> None:
        """A checkpoint was written."""
        self._telemetry.counter("fourstage_checkpoints_total").inc()
        self._telemetry.gauge("fourstage_checkpoint_step").set(step)
        self._telemetry.histogram("fourstage_checkpoint_seconds").observe(seconds)

    def exchanged(self, forward: int, backward: int) -> None:
        """Bytes that this column has sent to the other one since it started."""
        for way, total in (("forward", forward), ("backward", backward)):
            self._telemetry.counter("fourstage_exchanged_bytes_total", way).inc(total - self._exchanged[way])
            self._exchanged[way] = total

    def epoch(self, epoch: int, train: ErrorRates | None, validation: ErrorRates | None) -> None:
        """An epoch is over, or the run ends within one."""
        for split, rates in (("train", train), ("val", validation)):
            if rates is None:
                continue
            self._rates[split] = _plain(rates)
            self._telemetry.gauge("fourstage_error_ratio", split, "1").set(rates.top1_error)
            if rates.top5_error is not None:
                self._telemetry.gauge("fourstage_error_ratio", split, "5").set(rates.top5_error)
        line = {
            "epoch": epoch,
            "step": self._last.get("step", self._first),
            "train": _plain(train) if train else None,
            "val": _plain(validation) if validation else None,
        }
        self._epochs.add(line)
        self._epochs.flush()

    def receipt(self, line: dict[str, Any], duplicates: int) -> None:
        """An epoch's samples were all used."""
        redispatched = self.stages.redispatched if self.stages else 0
        self._receipt.add(line | {"redispatched": redispatched, "duplicates_dropped": duplicates})
        self._receipt.flush()

    def status(self, state: str, arrived: int, *, force: bool = False) -> None:
        """Refresh ``status.json`` and the metrics of the run where it is due."""
        now = time.monotonic()
        if now < self._next_status and not force:
            return
        self._next_status = now + _STATUS_SECONDS
        stages = self.stages
        self._telemetry.gauge("fourstage_queue_items", "arrived").set(arrived)
        self._telemetry.gauge("fourstage_queue_capacity_items", "arrived").set(stages.window if stages else 0)
        if self._run_dir is None:
            return
        self.flush()
        step = self._last.get("step", self._first)
        reading = self._reading(now)
        self._readings.append((step, self._images, reading))
        while len(self._readings) > 2 and now - self._readings[0][2].at > _RECENT_SECONDS:
            self._readings.popleft()
        first_step, images, before = self._readings[0]
        recent = {name: shares(before.of(name), reading.of(name)) for name in STAGE_NAMES}
        seconds = now - before.at
        rate = (self._images - images) / seconds if seconds > 0 else 0.0
        steps_per_second = (step - first_step) / seconds if seconds > 0 else 0.0
        verdict = self._judge(before, reading, waiting=self.waiting)
        self._say(verdict, state, now)
        rundir.write_json(
            self._run_dir / rundir.STATUS,
            {
                "state": state,
                "written_at": round(time.time(), 3),
                "step": step,
                "steps": self._end,
                "epoch": self._last.get("epoch", 0),
                "loss": self._last.get("loss"),
                "learning_rate": self._last.get("learning_rate"),
                "train": self._rates.get("train"),
                "val": self._rates.get("val"),
                "images_per_second": round(rate, 1),
                "seconds": round(now - self._began, 1),
                "seconds_left": round((self._end - step) / steps_per_second, 1) if steps_per_second else None,
                "corrupt": self.skipped,
                "augmenters": stages.augmenters if stages else 0,
                "decode": self._decode,
                "window": stages.window if stages else 0,
                "queues": {
                    "loaded": stages.loaded if stages else 0,
                    "leased": stages.leased if stages else 0,
                    "arrived": arrived,
                },
                "stages": {name: _share_line(recent[name]) for name in STAGE_NAMES},
                "usage": {name: _usage_line(reading.of(name)) for name in STAGE_NAMES},
                "on_the_way_seconds": {
                    "to_augmenter": round(reading.to_augmenter, 3), "to_trainer": round(reading.to_trainer, 3),
                },
                "waits": round(verdict.waits, 4),
                "augmenters_wanted": verdict.wanted,
                "verdict": verdict.as_json(),
                "bottleneck": verdict.sentence,
                "failure": self.failure,
            },
            durable=False,
        )  # fmt: skip

    def summary(
        self, state: str, *, receipt: dict[str, Any], duplicates: int, exchanged: dict[str, int] | None
    ) -> None:
        """Write ``summary.json``; the run is over. exchanged: what two columns sent one another."""
        if self._run_dir is None:
            return
        began = self._first_batch or self._ended
        seconds = max(0.0, self._ended - began)
        reading = self._reading(time.monotonic())
        usages = {name: reading.of(name) for name in STAGE_NAMES}
        final_split = "val" if "val" in self._rates else "train"
        unknown = {"loss": self._last.get("loss"), "top1_error": None, "top5_error": None}
        stages = self.stages
        rundir.write_json(
            self._run_dir / rundir.SUMMARY,
            {
                "state": state,
                "steps": self._last.get("step", self._first),
                "steps_this_session": self._last.get("step", self._first) - self._first,
                "images": self._images,
                "images_per_second": round(self._images / seconds, 1) if seconds else 0.0,
                "seconds": round(seconds, 3),
                "start_seconds": round(began - self._began, 3),
                "data_wait_fraction": round(self._waited / seconds, 4) if seconds else 0.0,
                "stages": {
                    name: {"busy_seconds": round(usages[name].busy, 3), "batches": usages[name].batches}
                    for name in STAGE_NAMES
                },
                # Of the whole run: whatever is missing at its end says nothing of it.
                "bottleneck": self._judge(self._first_reading, reading, waiting="").sentence,
                "receipt": receipt
                | {
                    "redispatched": stages.redispatched if stages else 0,
                    "duplicates_dropped": duplicates,
                },
                "final": {"split": final_split if final_split in self._rates else None}
                | self._rates.get(final_split, unknown),
                "augmenters": stages.augmenters if stages else 0,
            }
            | ({"exchanged": exchanged} if exchanged else {}),
        )

    def flush(self, *, durable: bool = False) -> None:
        """Everything told so far reaches the files; durable: it survives a power cut, as the checkpoint after it."""
        for lines in (self._steps, self._samples, self._epochs, self._receipt):
            lines.flush(durable=durable)

    def close(self) -> None:
        for lines in (self._steps, self._samples, self._epochs, self._receipt):
            lines.close()

    def _reading(self, now: float) -> Reading:
        stages = self.stages
        usages = {"copy": self._copy.usage, "train": self._train.usage}
        if stages is not None:
            usages |= {"load": stages.load, "transform": stages.transform}
        ways = self.on_the_way
        return Reading(usages, now, ways.get("to-augmenter", 0.0), ways.get("to-trainer", 0.0))

    def _judge(self, before: Reading, after: Reading, *, waiting: str) -> Verdict:
        stages = self.stages
        return judge(
            before, after, augmenters=stages.augmenters if stages else 0, replicas=self._replicas,
            waiting=waiting, decodes=self._decode == "device",
        )  # fmt: skip

    def _say(self, verdict: Verdict, state: str, now: float) -> None:
        """Metrics at once; a line in the log once the run has waited for something else for a while."""
        for what in BOTTLENECKS:
            self._telemetry.gauge("fourstage_bottleneck", what).set(what == verdict.what)
        for name in RUN_STATES:
            self._telemetry.gauge("fourstage_run_state", name).set(name == state)
        self._telemetry.gauge("fourstage_augmenters_wanted").set(verdict.wanted)
        said, since = self._said
        if verdict.what in (said, "starting"):
            self._said = (said, now)
        elif now - since > _SETTLED_SECONDS:
            log.info("%s", verdict.sentence)
            self._said = (verdict.what, now)


def _last_rates(run_dir: Path) -> dict[str, dict[str, Any]]:
    lines = rundir.read_lines(run_dir / rundir.EPOCHS)[-1:]
    return {split: line[split] for line in lines for split in ("train", "val") if line.get(split)}


def _plain(rates: ErrorRates) -> dict[str, Any]:
    return {"loss": rates.loss, "top1_error": rates.top1_error, "top5_error": rates.top5_error}


def _share_line(part: Shares) -> dict[str, Any]:
    return {
        "busy": round(part.busy, 3),
        "wait_upstream": round(part.wait_upstream, 3),
        "wait_downstream": round(part.wait_downstream, 3),
        "batches": part.batches,
    }


def _usage_line(usage: Usage) -> dict[str, Any]:
    return {
        "batches": usage.batches,
        "busy": round(usage.busy, 4),
        "wait_upstream": round(usage.wait_upstream, 4),
        "wait_downstream": round(usage.wait_downstream, 4),
    }
