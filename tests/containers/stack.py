"""The whole compose file under a project name of its own, for tests that start it for real."""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
IMAGES = ("fourstage", "fourstage-trainer", "prom/prometheus:v2.42.0")
SERVICES = ("store", "keys", "loader", "augmenter", "trainer", "prometheus")
"""All but Grafana: its image takes long to come, and nothing else asks it for anything."""


@dataclass(frozen=True)
class Stack:
    """A project that runs. ``files``: its compose files; ``environment``: its variables."""

    project: str
    command: tuple[str, ...]
    environment: Mapping[str, str]

    def compose(self, *arguments: str) -> str:
        """Run Compose; what it said."""
        done = subprocess.run(
            [*self.command, *arguments], capture_output=True, text=True, check=False, cwd=ROOT, timeout=280,
            env=os.environ | dict(self.environment),
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Containers of a service, running or not."""
        return docker(
            "ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()  # fmt: skip

    def inspect(self, service: str) -> list[dict[str, Any]]:
        """What the engine knows of each container of a service."""
        found = self.containers(service)
        described = json.loads(docker("inspect", *found)) if found else []
        assert isinstance(described, list)
        return described

    def logs(self, service: str) -> str:
        return self.compose("logs", "--no-color", service)

    def file(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, empty where it is not there (yet)."""
        command = ["docker", "run", "--rm", "--network=none", f"--volume={self.project}_runs:/runs:ro"]
        command += ["--entrypoint=cat", IMAGES[0], f"/runs/demo/{name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        value = json.loads(done.stdout) if done.returncode == 0 else {}
        return value if isinstance(value, dict) else {}

    def step(self) -> int:
        return int(self.file("status.json").get("step", 0))


def docker(*arguments: str) -> str:
    """Run docker; its standard output."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True, timeout=120).stdout


def missing() -> str:
    """Why the stack cannot be started here; empty where it can."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no Docker engine answers"
    if not _compose():
        return "neither docker-compose nor docker compose is installed"
    for image in IMAGES:
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode:
            return f"there is no image {image}: make images"
    return ""


@contextmanager
def stack(
    folder: Path, settings: Mapping[str, object], files: tuple[str, ...] = ("compose.yaml",), **variables: str
) -> Iterator[Stack]:
    """A project whose services have these settings; in the end it goes with all that it made. Skips without engine."""
    if reason := missing():
        pytest.skip(reason)
    project = f"fourstage-test-{secrets.token_hex(4)}"
    (folder / "settings.env").write_text("".join(f"FOURSTAGE_{name}={value}\n" for name, value in settings.items()))
    # A .env in the working tree is somebody's own.
    (folder / "empty.env").touch()
    named = [part for file in files for part in ("-f", file)]
    command = (*_compose(), "--env-file", str(folder / "empty.env"), "-p", project, *named)
    environment = {"SETTINGS": str(folder / "settings.env"), "PROMETHEUS_PORT": "0", **variables}
    running = Stack(project, command, environment)
    try:
        yield running
    finally:
        running.compose("down", "--volumes", "--timeout", "5")


def _compose() -> tuple[str, ...]:
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return ("docker", "compose") if plugin.returncode == 0 else ()
