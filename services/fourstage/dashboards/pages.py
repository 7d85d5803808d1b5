"""Every page, and the files that Grafana reads them from."""

import json
from pathlib import Path

from fourstage.dashboards.grafana import Dashboard
from fourstage.dashboards.pipeline import PIPELINE
from fourstage.dashboards.queries import ANNOTATIONS, variables
from fourstage.dashboards.render import Json, render
from fourstage.dashboards.training import TRAINING
from fourstage.dashboards.workers import WORKERS

FOLDER = Path("docker/monitoring/grafana/dashboards/fourstage")
"""From the repository's root; the folder's name is the one that Grafana shows."""
DASHBOARDS = (PIPELINE, TRAINING, WORKERS)


def file_name(dashboard: Dashboard) -> str:
    """Of its JSON."""
    return f"{dashboard.uid.removeprefix('fourstage-')}.json"


def as_json(dashboard: Dashboard) -> Json:
    """What its file holds."""
    of = 'fourstage_build_info{role="augmenter"}' if dashboard is WORKERS else "fourstage_build_info"
    return render(dashboard, ANNOTATIONS, variables(of))


def text(dashboard: Dashboard) -> str:
    """Its file."""
    return json.dumps(as_json(dashboard), indent=1, ensure_ascii=False) + "\n"


def write(folder: Path) -> None:
    """Write all of them anew."""
    folder.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        (folder / file_name(dashboard)).write_text(text(dashboard), "utf-8")
