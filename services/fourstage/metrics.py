"""Every metric, declared once: name, kind, meaning, labels, and which processes export it.

Names and units follow Prometheus: base units, counters end in ``_total``. ``docs/metrics.md`` is made from this table.
"""

from dataclasses import dataclass
from typing import Literal

Role = Literal["loader", "augmenter", "trainer"]
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STAGES: dict[Role, tuple[str, ...]] = {
    "loader": ("load",),
    "augmenter": ("transform",),
    "trainer": ("copy", "train"),
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One exported family. ``roles``: the processes that export it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()
    """Label values that exist from the start, beside those of the stage."""
    roles: tuple[Role, ...] = ("loader", "augmenter", "trainer")


METRICS = (
    Metric("fourstage_build_info", "gauge", "1, labelled with the version and role.", ("version", "role")),
    Metric("fourstage_items_total", "counter", "Images that a stage finished.", ("stage",)),
    Metric("fourstage_batches_total", "counter", "Batches that a stage finished.", ("stage",)),
    Metric("fourstage_bytes_total", "counter", "Bytes that a stage handed on.", ("stage",)),
    Metric("fourstage_busy_seconds_total", "counter", "Seconds in which a stage worked.", ("stage",)),
    Metric(
        "fourstage_wait_seconds_total",
        "counter",
        "Seconds in which a stage waited: upstream for input, downstream for a place to put its output.",
        ("stage", "blocked_on"),
    ),
    Metric(
        "fourstage_queue_items",
        "gauge",
        "Batches that lie in a queue: loaded (read, not leased), leased (at augmenters), arrived (at the trainer, "
        "not yet trained on).",
        ("queue",),
    ),
    Metric("fourstage_queue_capacity_items", "gauge", "Batches that the queue can hold.", ("queue",)),
    Metric(
        "fourstage_peers",
        "gauge",
        "Peers that the loader hears from.",
        ("role",),
        (("augmenter",), ("trainer",)),
        ("loader",),
    ),
    Metric(
        "fourstage_leases_expired_total",
        "counter",
        "Workers whose leases ended by silence.",
        roles=("loader",),
    ),
    Metric(
        "fourstage_workers_died_total",
        "counter",
        "Workers that died or left without a goodbye.",
        roles=("loader",),
    ),
    Metric(
        "fourstage_redispatched_total",
        "counter",
        "Leases that were not their batch's first.",
        roles=("loader",),
    ),
    Metric(
        "fourstage_duplicates_dropped_total",
        "counter",
        "Batches that arrived a second time and were dropped.",
        roles=("trainer",),
    ),
    Metric(
        "fourstage_uploaded_bytes_total",
        "counter",
        "Bytes of pixels that went up to a GPU: registered, straight from the worker's memory, or staged, through "
        "another copy on the CPU.",
        ("path",),
        (("registered",), ("staged",)),
        ("trainer",),
    ),
    Metric(
        "fourstage_exchanged_bytes_total",
        "counter",
        "Bytes of activations (forward) and of their gradients (backward) that this trainer sent to the other column.",
        ("pass",),
        (("forward",), ("backward",)),
        ("trainer",),
    ),
    Metric("fourstage_peer_errors_total", "counter", "Messages that the protocol does not allow, dropped."),
    Metric(
        "fourstage_slots",
        "gauge",
        "Slots of this process's arenas, by state.",
        ("state",),
        (("free",), ("used",)),
    ),
    Metric(
        "fourstage_data_wait_seconds_total",
        "counter",
        "Seconds in which the train stage waited for a batch.",
        ("rank",),
        roles=("trainer",),
    ),
    Metric("fourstage_step_seconds", "histogram", "Seconds of one training step.", ("rank",), roles=("trainer",)),
    Metric("fourstage_steps_total", "counter", "Training steps done.", roles=("trainer",)),
    Metric("fourstage_loss", "gauge", "Mean loss of the last training step reported.", roles=("trainer",)),
    Metric("fourstage_learning_rate", "gauge", "Present learning rate.", roles=("trainer",)),
    Metric(
        "fourstage_error_ratio",
        "gauge",
        "Share of images whose label is not among the k most probable.",
        ("split", "k"),
        roles=("trainer",),
    ),
    Metric(
        "fourstage_last_progress_timestamp_seconds",
        "gauge",
        "Unix time at which this process last finished a batch.",
    ),
)
