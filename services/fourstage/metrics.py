"""Every metric, declared once: name, kind, meaning, labels, and which processes export it.

Names and units follow Prometheus: base units, counters end in ``_total``. ``docs/metrics.md`` is made from this table.
"""

from dataclasses import dataclass
from typing import Literal

Role = Literal["loader", "augmenter", "trainer"]
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
STAGES: dict[Role, tuple[str, ...]] = {
    "loader": ("load",),
    "augmenter": ("transform",),
    "trainer": ("copy", "train"),
}


BOTTLENECKS = ("starting", "train", "copy", "to-trainer", "transform", "to-augmenter", "load", "window", "peer")
"""What a run can wait for, from its end to its beginning; ``peer``: a process that is not there or is refused."""
RUN_STATES = ("starting", "running", "validating", "interrupted", "done")


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
    Metric(
        "fourstage_build_info",
        "gauge",
        "1, labelled with the version, the role and the host's name, which in a container is the replica's.",
        ("version", "role", "replica"),
    ),
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
    Metric(
        "fourstage_queue_capacity_items",
        "gauge",
        "Batches that the queue can hold.",
        ("queue",),
        roles=("loader", "trainer"),
    ),
    Metric(
        "fourstage_window_batches",
        "gauge",
        "Batches between the last one trained on and the furthest that may be read, of the widest stream.",
        roles=("loader",),
    ),
    Metric("fourstage_streams", "gauge", "Streams that trainers have open.", roles=("loader",)),
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
        "fourstage_workers_refused_total",
        "counter",
        "Workers that a stream takes nothing from any more: a trainer's word, the loader's, or their own.",
        roles=("loader",),
    ),
    Metric(
        "fourstage_redispatched_total",
        "counter",
        "Leases that were not their batch's first.",
        roles=("loader",),
    ),
    Metric(
        "fourstage_augmenters_expected",
        "gauge",
        "Augmenters that there should be (loader.expect_augmenters); 0: any number.",
        roles=("loader",),
    ),
    Metric(
        "fourstage_trainers_lost",
        "gauge",
        "Trainers that died or fell silent without a goodbye and have not come back.",
        roles=("loader",),
    ),
    Metric(
        "fourstage_corrupt_samples_total",
        "counter",
        "Different stored images with the right checksum that could not be decoded: by the trainer those that a run "
        "goes without, by the loader one that ends a stream.",
        roles=("loader", "trainer"),
    ),
    Metric(
        "fourstage_corrupt_budget_samples",
        "gauge",
        "Different corrupt images that a run may leave out before it fails; 0 where it fails by the first.",
        roles=("loader", "trainer"),
    ),
    Metric(
        "fourstage_reads_repeated_total",
        "counter",
        "Samples read again because a read failed, came short or brought other bytes than the checksum says.",
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
        "fourstage_refused_handshakes_total",
        "counter",
        "Connections over TCP that did not come about: an unknown key, a key of another role, no key where one is "
        "wanted (or one where none is), a client of a wrong server or with another one's bytes, another protocol.",
        ("reason",),
        (("key",), ("role",), ("no key",), ("wrong server",), ("protocol",)),
        ("loader", "trainer"),
    ),
    Metric(
        "fourstage_refused_messages_total",
        "counter",
        "Messages that were not taken: of a key that was revoked, of a role that has no business at the socket, of a "
        "peer that says it is another, without an end.",
        ("reason",),
        (("revoked",), ("role",), ("peer",), ("unfinished",)),
        ("loader", "trainer"),
    ),
    Metric(
        "fourstage_slots",
        "gauge",
        "Slots of this process's arenas, by state.",
        ("state",),
        (("free",), ("used",)),
    ),
    Metric("fourstage_arena_bytes", "gauge", "Shared memory that this process's own arenas take."),
    Metric(
        "fourstage_wire_seconds_total",
        "counter",
        "Seconds that batches were on their way, summed over them: to-augmenter, from the lease to its receipt, and "
        "to-trainer, from the finished batch to its receipt.",
        ("hop",),
        (("to-augmenter",), ("to-trainer",)),
        ("trainer",),
    ),
    Metric(
        "fourstage_batch_age_seconds",
        "histogram",
        "Age of a batch, since the loader began to read it, when a stage had finished with it.",
        ("stage",),
        (("load",), ("transform",)),
        ("trainer",),
    ),
    Metric(
        "fourstage_bottleneck",
        "gauge",
        "1 for what the run waits for, 0 for the rest; from the first trainer.",
        ("what",),
        tuple((what,) for what in BOTTLENECKS),
        ("trainer",),
    ),
    Metric(
        "fourstage_augmenters_wanted",
        "gauge",
        "Augmenters that would just feed the trainer, however many there are; 0 before that is known.",
        roles=("trainer",),
    ),
    Metric(
        "fourstage_run_state",
        "gauge",
        "1 for the state that the run is in, 0 for the rest; from the first trainer.",
        ("state",),
        tuple((state,) for state in RUN_STATES),
        ("trainer",),
    ),
    Metric("fourstage_run_steps", "gauge", "Steps of the whole run.", roles=("trainer",)),
    Metric("fourstage_run_step", "gauge", "Step that the run has reached, resumed ones included.", roles=("trainer",)),
    Metric("fourstage_run_epoch", "gauge", "Epoch of the last step.", roles=("trainer",)),
    Metric("fourstage_checkpoints_total", "counter", "Checkpoints that were written.", roles=("trainer",)),
    Metric("fourstage_checkpoint_step", "gauge", "Step of the last checkpoint.", roles=("trainer",)),
    Metric("fourstage_checkpoint_seconds", "histogram", "Seconds that a checkpoint took.", roles=("trainer",)),
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
