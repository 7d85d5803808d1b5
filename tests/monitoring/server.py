"""A real Prometheus that watches a run on this machine, as the one in compose.yaml watches containers."""

import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fourstage.dashboards.prometheus import Prometheus
from tests.monitoring.expressions import MONITORING, RULES
from tests.pipeline.harness import eventually
from tests.ports import free_port

ROLES = ("loader", "augmenter", "trainer")


@contextmanager
def watching(run_dir: Path, folder: Path, seconds: int = 1) -> Iterator[Prometheus]:
    """Start a Prometheus that scrapes and judges every so many seconds, with the rules and job names of compose.yaml.

    ``processes.json`` of the run is looked at as often: processes come and go.
    """
    folder.mkdir(exist_ok=True)
    port = free_port()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(folder, port, seconds)))
    done = threading.Event()
    follower = threading.Thread(target=follow, args=(run_dir, folder, done))
    with (folder / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            [
                "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    follower.start()
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: is_ready(url), f"Prometheus ready, see {folder / 'prometheus.log'}")
        yield Prometheus(url)
    finally:
        done.set()
        follower.join()
        server.terminate()
        server.wait(30)


def configuration(folder: Path, port: int, seconds: int) -> dict[str, Any]:
    """That of docker/monitoring with another way to find the targets, and faster."""
    content: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    content["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{seconds}s")
    content["rule_files"] = [str(RULES / "*.yml")]
    for job in content["scrape_configs"]:
        if job.pop("dns_sd_configs", None):
            job["file_sd_configs"] = [{"files": [str(folder / f"{job['job_name']}.json")], "refresh_interval": "1s"}]
        else:
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    return content


def follow(run_dir: Path, folder: Path, done: threading.Event) -> None:
    """Keep the files of targets as the run's processes are."""
    while not done.wait(0.2):
        try:
            listed = json.loads((run_dir / "processes.json").read_text())
        except (OSError, ValueError):
            continue
        for role in ROLES:
            targets = [
                entry["metrics"].removeprefix("http://")
                for name, entry in listed.items()
                if name.partition("-")[0] == role and "metrics" in entry
            ]
            path = folder / f"{role}.json"
            text = json.dumps([{"targets": targets}])
            if not path.exists() or path.read_text() != text:
                path.with_suffix(".new").write_text(text)
                path.with_suffix(".new").rename(path)


def is_ready(url: str) -> bool:
    """Whether it answers questions."""
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def installed() -> bool:
    """Whether there is a Prometheus to start."""
    return shutil.which("prometheus") is not None
