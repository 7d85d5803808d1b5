"""What a trainer tells: a line per step and epoch, the live status, the summary, the metrics."""

import time
from collections import deque
from pathlib import Path
from typing import Any

from fourstage import rundir
from fourstage.telemetry import StageMeter, Telemetry
from fourstage.trainer.evaluate import ErrorRates
from fourstage.verdict import Shares, bottleneck, shares
from fourstage.wire.messages import Stages, Usage

_STATUS_SECONDS = 0.5
_RECENT_SECONDS = 10.0
"""Rates and shares of the live view look back this far."""

STAGE_NAMES = ("load", "transform", "copy", "train")


class Report:
    """Writes the run directory's lines and whole files, and sets the metrics of the train stage.

    Of several trainers only the first writes files: the others have no ``run_dir``.
    """

    def __init__(
        self,
        run_dir: Path | None,
        *,
        rank: int,
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
        self._steps, self._epochs, self._receipt = (
            rundir.Lines(run_dir / name if run_dir else None) for name in (rundir.STEPS, rundir.EPOCHS, rundir.RECEIPT)
        )
        self._began = began
        self._ended = began
        """Of the last step: checkpoints and validation after it are not the pipeline's time."""
        self._first_batch: float | None = None
        self._waited = 0.0
        self._images = 0
        self._exchanged = {"forward": 0, "backward": 0}
        self._readings: deque[tuple[float, int, int, dict[str, Usage]]] = deque()
        self._last: dict[str, Any] = {}
        self._rates: dict[str, ErrorRates] = {}
        self._next_status = 0.0
        self.stages: Stages | None = None

    def waited(self, seconds: float) -> None:
        """The train stage waited for a batch; before the first one that is start-up, not a stall."""
        if self._first_batch is None:
            self._first_batch = time.monotonic()
            return
        self._waited += seconds
        self._train.waited(seconds, "upstream")
        self._telemetry.counter("fourstage_data_wait_seconds_total", self._rank).inc(seconds)

    def step(
        self, step: int, *, epoch: int, loss: float | None, learning_rate: float, seconds: float, waited: float,
        rows: int, digest: str,
    ) -> None:  # fmt: skip
        """A step is over. step: counted from 1."""
        self._images += rows
        self._ended = time.monotonic()
        line = {
            "step": step, "epoch": epoch, "loss": loss, "learning_rate": learning_rate, "seconds": round(seconds, 6),
            "data_wait_seconds": round(waited, 6), "digest": digest,
        }  # fmt: skip
        self._steps.add(line)
        self._last = line
        self._telemetry.counter("fourstage_steps_total").inc()
        self._telemetry.histogram("fourstage_step_seconds", self._rank).observe(seconds)
        self._telemetry.gauge("fourstage_learning_rate").set(learning_rate)
        if loss is not None:
            self._telemetry.gauge("fourstage_loss").set(loss)

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
            self._rates[split] = rates
            self._telemetry.gauge("fourstage_error_ratio", split, "1").set(rates.top1_error)
            if rates.top5_error is not None:
                self._telemetry.gauge("fourstage_error_ratio", split, "5").set(rates.top5_error)
        line = {
            "epoch": epoch,
            "step": self._last.get("step"),
            "train": _plain(train),
            "val": _plain(validation),
        }
        self._epochs.add(line)
        self._epochs.flush()

    def receipt(self, line: dict[str, Any], duplicates: int) -> None:
        """An epoch's samples were all used."""
        redispatched = self.stages.redispatched if self.stages else 0
        self._receipt.add(line | {"redispatched": redispatched, "duplicates_dropped": duplicates, "corrupt": []})
        self._receipt.flush()

    def status(self, state: str, arrived: int, *, force: bool = False) -> None:
        """Refresh ``status.json`` where it is due."""
        now = time.monotonic()
        if self._run_dir is None or (now < self._next_status and not force):
            return
        self._next_status = now + _STATUS_SECONDS
        self._steps.flush()
        usages = self._usages()
        self._readings.append((now, self._last.get("step", self._first), self._images, usages))
        while len(self._readings) > 2 and now - self._readings[0][0] > _RECENT_SECONDS:
            self._readings.popleft()
        then, _, images, before = self._readings[0]
        recent = self._shares(before, usages)
        step = self._last.get("step", self._first)
        rate = (self._images - images) / (now - then) if now > then else 0.0
        steps_per_second = (step - self._readings[0][1]) / (now - then) if now > then else 0.0
        self._telemetry.gauge("fourstage_queue_items", "arrived").set(arrived)
        stages = self.stages
        rundir.write_json(
            self._run_dir / rundir.STATUS,
            {
                "state": state,
                "step": step,
                "steps": self._end,
                "epoch": self._last.get("epoch", 0),
                "loss": self._last.get("loss"),
                "learning_rate": self._last.get("learning_rate"),
                "train": _plain(self._rates.get("train")),
                "val": _plain(self._rates.get("val")),
                "images_per_second": round(rate, 1),
                "seconds": round(now - self._began, 1),
                "seconds_left": round((self._end - step) / steps_per_second, 1) if steps_per_second else None,
                "augmenters": stages.augmenters if stages else 0,
                "window": stages.window if stages else 0,
                "queues": {
                    "loaded": stages.loaded if stages else 0,
                    "leased": stages.leased if stages else 0,
                    "arrived": arrived,
                },
                "stages": {name: _share_line(recent[name]) for name in STAGE_NAMES},
                "bottleneck": self._sentence(recent),
            },
            durable=False,
        )

    def summary(
        self, state: str, *, receipt: dict[str, Any], duplicates: int, exchanged: dict[str, int] | None
    ) -> None:
        """Write ``summary.json``; the run is over. exchanged: what two columns sent one another."""
        if self._run_dir is None:
            return
        began = self._first_batch or self._ended
        seconds = max(0.0, self._ended - began)
        usages = self._usages()
        whole = self._shares({name: Usage() for name in STAGE_NAMES}, usages)
        final_split = "val" if "val" in self._rates else "train"
        final = self._rates.get(final_split)
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
                "bottleneck": self._sentence(whole),
                "receipt": receipt
                | {
                    "redispatched": stages.redispatched if stages else 0,
                    "duplicates_dropped": duplicates,
                    "corrupt": 0,
                },
                "final": {
                    "split": final_split if final else None,
                    "loss": final.loss if final else self._last.get("loss"),
                    "top1_error": final.top1_error if final else None,
                    "top5_error": final.top5_error if final else None,
                },
                "augmenters": stages.augmenters if stages else 0,
            }
            | ({"exchanged": exchanged} if exchanged else {}),
        )

    def flush(self) -> None:
        """Everything told so far reaches the files."""
        self._steps.flush()

    def close(self) -> None:
        for lines in (self._steps, self._epochs, self._receipt):
            lines.close()

    def _usages(self) -> dict[str, Usage]:
        stages = self.stages
        return {
            "load": stages.load if stages else Usage(),
            "transform": stages.transform if stages else Usage(),
            "copy": self._copy.usage,
            "train": self._train.usage,
        }

    def _shares(self, before: dict[str, Usage], after: dict[str, Usage]) -> dict[str, Shares]:
        return {name: shares(before[name], after[name]) for name in STAGE_NAMES}

    def _sentence(self, stages: dict[str, Shares]) -> str:
        if self.stages is not None and self.stages.waiting:
            return f"waiting: {self.stages.waiting}"
        return bottleneck(
            stages["load"],
            stages["transform"],
            stages["copy"],
            stages["train"],
            augmenters=self.stages.augmenters if self.stages else 0,
        )


def _plain(rates: ErrorRates | None) -> dict[str, Any] | None:
    if rates is None:
        return None
    return {"loss": rates.loss, "top1_error": rates.top1_error, "top5_error": rates.top5_error}


def _share_line(part: Shares) -> dict[str, Any]:
    return {
        "busy": round(part.busy, 3),
        "wait_upstream": round(part.wait_upstream, 3),
        "wait_downstream": round(part.wait_downstream, 3),
        "batches": part.batches,
    }
