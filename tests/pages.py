"""The pages of docs/ that are made from the code. ``python -m tests.pages`` writes them anew."""

from pathlib import Path

from fourstage.metrics import METRICS
from fourstage.settings import Section, Settings

DOCS = Path(__file__).parent.parent / "docs"


def metrics_page() -> str:
    """docs/metrics.md."""
    rows = []
    for metric in METRICS:
        labels, roles = ", ".join(metric.labels) or "none", ", ".join(metric.roles)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {roles} | {metric.help} |")
    return "\n".join(
        [
            "# Metrics",
            "",
            "Every process answers `/metrics` (Prometheus' text format) and `/healthz` at the address that it",
            "writes to its log, by default a free port on loopback (`metrics.host`, `metrics.port`). `/healthz` is 200",
            "while the data loop turns, 503 once it has not turned for 30 seconds: waiting is healthy, hanging is not.",
            "",
            "Seconds, images and bytes are counters; shares are for the reader, for example the share of its time in",
            "which the train stage waited for a batch:",
            "",
            "    rate(fourstage_data_wait_seconds_total[1m])",
            "",
            "Stages are `load` (loader), `transform` (augmenter), `copy` and `train` (trainer). A stage's busy and",
            "wait seconds add up to its time since it began to serve.",
            "",
            "| name | kind | labels | exported by | meaning |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Beside these there are the `process_*` and `python_*` families of prometheus-client.",
            "",
        ]
    )


def settings_page() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Values come, later ones over earlier ones, from the recipe (a name or a TOML file), the environment",
        "(`FOURSTAGE_BATCH_SIZE=64`, `FOURSTAGE_TRAIN__THREADS=2`), `--set KEY=VALUE`, and the flags of the command.",
        "`settings.toml` in a run directory holds the outcome. An unknown name is an error.",
        "",
    ]
    return "\n".join([*lines, *_section("", Settings)])


def _section(prefix: str, section: type[Section]) -> list[str]:
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    inner: list[str] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            title = " ".join((field.annotation.__doc__ or "").split())
            inner += ["", f"## {name}", "", title, "", *_section(f"{prefix}{name}.", field.annotation)]
            continue
        default = "unset" if field.default is None else f"`{field.default}`"
        meaning = " ".join((field.description or "").replace("``", "`").split()).replace("|", "\\|")
        lines.append(f"| `{prefix}{name}` | {default} | {meaning} |")
    return [*lines, *inner, *([""] if not prefix else [])]


PAGES = {"metrics.md": metrics_page, "settings.md": settings_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), "utf-8")
