"""What is learnt, how fast, and what a crash would cost."""

from fourstage.dashboards.grafana import Dashboard, Row
from fourstage.dashboards.panels import PACE, STEP, STEPS, lines, run_state, run_states, stat, time_left
from fourstage.dashboards.queries import AMBER, BLUE, GREEN, GREY, ORANGE, PINK, SKY, quantile, rate, series

_LOSS = f"max({series('fourstage_loss')})"
_RATE = f"max({series('fourstage_learning_rate')})"
_EPOCH = f"max({series('fourstage_run_epoch')})"

_NOW = Row(
    "Now",
    (
        run_state(3),
        stat("Step", "Reached, those before a resume included.", STEP, "locale", 3, decimals=0),
        stat("Of steps", "Of the whole run.", STEPS, "locale", 3, decimals=0),
        stat("Epoch now", "Of the last step, counted from 0.", _EPOCH, "locale", 3, decimals=0),
        stat("Loss now", "Mean loss of the last step reported.", _LOSS, "short", 3, decimals=4),
        stat(
            "Validation error",
            "Share of the validation images whose label is not the most probable one.",
            f"max({series('fourstage_error_ratio', split='val', k='1')})",
            "percentunit",
            3,
            decimals=1,
        ),
        stat("Learning rate now", "By the schedule, or as it was set by hand.", _RATE, "sci", 3),
        time_left(3),
    ),
)

_LEARNT = Row(
    "What is learnt",
    (
        lines(
            "Loss",
            "Mean loss of the last step at each scrape: a sample of the steps. steps.jsonl in the run directory has "
            "all of them.",
            {"loss": _LOSS},
            "short",
            8,
            height=8,
            colours={"loss": BLUE},
        ),
        lines(
            "Errors",
            "Share of images whose label is not among the k most probable, after each epoch. Training errors are "
            "counted with dropout and random crops, so they may lie above those of validation.",
            {"{{split}}, top-{{k}}": f"max by (split, k) ({series('fourstage_error_ratio')})"},
            "percentunit",
            8,
            height=8,
            colours={"train, top-1": ORANGE, "val, top-1": BLUE, "train, top-5": AMBER, "val, top-5": SKY},
        ),
        lines(
            "Learning rate",
            "By the schedule, or as it was set by hand.",
            {"learning rate": _RATE},
            "sci",
            8,
            height=8,
            log=True,
            colours={"learning rate": PINK},
        ),
    ),
)

_FAST = Row(
    "How fast",
    (
        lines(
            "Images trained on per second",
            "Over all ranks.",
            {"images/s": f"sum({rate('fourstage_items_total', stage='train')})"},
            "suffix: images/s",
            8,
            colours={"images/s": GREEN},
        ),
        lines(
            "Seconds of a step",
            "Without the wait for its batch: half of the steps, nine in ten and ninety-nine in a hundred are as short. "
            "Of the slowest rank, since ranks step together.",
            {
                legend: f"max({quantile(share, 'fourstage_step_seconds', ['rank'])})"
                for legend, share in (("half of them", 0.5), ("90 %", 0.9), ("99 %", 0.99))
            },
            "s",
            8,
            colours={"half of them": GREEN, "90 %": AMBER, "99 %": ORANGE},
        ),
        lines(
            "What the train stage does",
            "The share of its time in which it trained, and in which it waited for a batch. Validation and checkpoints "
            "are neither.",
            {
                "trains": f"max({rate('fourstage_busy_seconds_total', stage='train')})",
                "waits for a batch": f"max({rate('fourstage_data_wait_seconds_total')})",
            },
            "percentunit",
            8,
            colours={"trains": GREEN, "waits for a batch": ORANGE},
        ),
    ),
)

_SAFE = Row(
    "Where it stands, and what a crash would cost",
    (
        lines(
            "Steps",
            "Reached, and of the whole run.",
            {"done": STEP, "of": STEPS},
            "locale",
            5,
            colours={"done": GREEN, "of": GREY},
        ),
        lines("Epoch", "Of the last step, counted from 0.", {"epoch": _EPOCH}, "locale", 5, colours={"epoch": BLUE}),
        lines(
            "Since the last checkpoint",
            "What a crash now would cost: the steps since the last checkpoint, at the present pace. "
            "train.checkpoint_seconds bounds it.",
            {"would be lost": f"({STEP} - max({series('fourstage_checkpoint_step')})) / {PACE}"},
            "s",
            5,
            colours={"would be lost": ORANGE},
        ),
        lines(
            "Checkpoints",
            "Written since the trainer started.",
            {"written": f"max({series('fourstage_checkpoints_total')})"},
            "locale",
            4,
            colours={"written": BLUE},
        ),
        lines(
            "Seconds of a checkpoint",
            "On average since the trainer started: training stands still meanwhile.",
            {
                "mean": f"max({series('fourstage_checkpoint_seconds_sum')}"
                f" / ({series('fourstage_checkpoint_seconds_count')} > 0))"
            },
            "s",
            5,
            colours={"mean": PINK},
        ),
        run_states(),
    ),
)

TRAINING = Dashboard(
    uid="fourstage-training",
    title="fourstage: training",
    description="Loss, errors and learning rate, the pace, and the checkpoints of a run.",
    rows=(_NOW, _LEARNT, _FAST, _SAFE),
)
