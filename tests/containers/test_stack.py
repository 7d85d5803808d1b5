"""The containers for real: the demo trains to its end, locked down, and whatever happens meanwhile changes no byte."""

import json
import math
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from fourstage.dashboards.pages import DASHBOARDS
from fourstage.dashboards.prometheus import Prometheus
from fourstage.dashboards.queries import concrete
from fourstage.store.prepare import prepare
from tests.containers.stack import ROOT, SERVICES, Stack, docker, stack
from tests.monitoring.expressions import rules
from tests.pipeline.harness import SIZE, complete_run, eventually, write_photographs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def _state(running: Stack, service: str) -> list[tuple[str, str]]:
    """Of each container: whether it runs, and its health."""
    states = [described["State"] for described in running.inspect(service)]
    return [(state["Status"], state.get("Health", {}).get("Status", "")) for state in states]


def _ended(running: Stack) -> bool:
    return _state(running, "trainer")[0][0] == "exited"


def _asked(running: Stack, query: str) -> float:
    """What Prometheus answers on its published port."""
    address = running.compose("port", "prometheus", "9090").strip()
    assert address.startswith("127.0.0.1:")
    with urllib.request.urlopen(f"http://{address}/api/v1/query?query={urllib.parse.quote(query)}", timeout=10) as page:
        result = json.load(page)["data"]["result"]
    return float(result[0]["value"][1]) if result else 0.0


def _watching(running: Stack) -> Prometheus:
    return Prometheus("http://" + running.compose("port", "prometheus", "9090").strip())


def _unanswered(prometheus: Prometheus) -> list[str]:
    """Questions of the dashboards and names of recording rules that have no number now."""
    questions = [
        concrete(query.expr, "30s") for dashboard in DASHBOARDS for panel in dashboard.panels for query in panel.queries
    ]
    questions += [rule["record"] for rule in rules("record")]
    answers = {question: prometheus.query(question) for question in questions}
    return [
        question
        for question, lines in answers.items()
        if not lines or not all(math.isfinite(line.values[0]) for line in lines)
    ]


def _check_locked_down(described: dict[str, Any], service: str) -> None:
    host, config = described["HostConfig"], described["Config"]
    assert config["User"].split(":")[0] not in ("", "0", "root")
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["Privileged"] is False
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["PidsLimit"] > 0
    assert host["LogConfig"]["Type"] == "local"
    published = {port: bindings for port, bindings in described["NetworkSettings"]["Ports"].items() if bindings}
    if service == "prometheus":
        assert all(binding["HostIp"] == "127.0.0.1" for bindings in published.values() for binding in bindings)
    else:
        assert not published


def test_the_demo_trains_to_its_end_in_locked_down_containers(tmp_path: Path) -> None:
    # Slow enough that the trainer's health is seen.
    settings = {"TRAIN__EPOCHS": 1, "TRAIN__DROP_EPOCHS": "[]", "AUGMENTER__BATCH_SECONDS": 0.4}
    with stack(tmp_path, settings) as running:
        running.compose("up", "-d", *SERVICES)
        lasting = ("loader", "augmenter", "trainer", "prometheus")
        eventually(
            lambda: all(set(_state(running, name)) == {("running", "healthy")} for name in lasting), "healthy", 60
        )
        assert len(running.containers("augmenter")) == 2
        for service in SERVICES:
            for described in running.inspect(service):
                _check_locked_down(described, service)
        for service in lasting:
            for container in running.containers(service):
                held = docker("exec", container, "cat", "/proc/1/status")
                assert "CapEff:\t0000000000000000" in held
                assert "NoNewPrivs:\t1" in held
        eventually(lambda: _asked(running, 'count(up{job="augmenter"} == 1)') == 2, "both scraped")
        assert _asked(running, 'count(up{job=~"loader|trainer"} == 1)') == 2

        # Pixels and JPEG bytes are handed over in memory: what goes over the network is a small part of them.
        container = running.containers("augmenter")[0]
        eventually(lambda: running.step() > 60, "steps")
        sent = int(docker("exec", container, "cat", "/sys/class/net/eth0/statistics/tx_bytes"))
        page = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
        lines = docker("exec", container, "python", "-c", page).splitlines()
        made = next(float(line.split()[1]) for line in lines if line.startswith('fourstage_bytes_total{stage="transf'))
        assert made > 2e6
        assert sent < made / 5

        eventually(lambda: _ended(running), "the end", 120)
        assert running.inspect("trainer")[0]["State"]["ExitCode"] == 0
        summary = running.file("summary.json")
        assert (summary["state"], summary["steps"]) == ("done", 125)
        assert "dashboard: http://127.0.0.1:3000" in running.logs("store")

        # Started again it finds its run done, and touches nothing.
        running.compose("up", "-d", "--no-recreate", *SERVICES)
        eventually(lambda: _ended(running) and "is done" in running.logs("trainer"), "the end")
        assert running.inspect("trainer")[0]["State"]["ExitCode"] == 0
        assert running.file("summary.json") == summary


def test_scaling_kills_and_restarts_change_no_byte(tmp_path: Path) -> None:
    write_photographs(tmp_path, "train", 80)
    write_photographs(tmp_path, "val", 16)
    store = tmp_path / "store"
    prepare(tmp_path / "train", store, size=SIZE, workers=1)
    prepare(tmp_path / "val", store, split="val", size=SIZE, workers=1)
    values = {"batch_size": 8, "train.epochs": 16, "receipt": "pixels"}
    recipe = ["--recipe", "demo", *(part for key, value in values.items() for part in ("--set", f"{key}={value}"))]
    undisturbed = complete_run(store, tmp_path / "run", *recipe, "--augmenters", "1")

    settings = {name.upper().replace(".", "__"): value for name, value in values.items()}
    settings |= {"AUGMENTER__BATCH_SECONDS": 0.5, "LOADER__SILENCE_SECONDS": 2, "TRAIN__CHECKPOINT_SECONDS": 3}
    with stack(tmp_path, settings, STORE=str(store)) as running:

        def scale(number: int) -> None:
            # As the documentation says: nothing else is touched.
            running.compose("up", "-d", "--no-deps", "--no-recreate", "--scale", f"augmenter={number}", "augmenter")
            eventually(lambda: running.file("status.json").get("augmenters") == number, f"{number} augmenters", 60)

        def go_on(steps: int) -> None:
            goal = running.step() + steps
            eventually(lambda: running.step() >= goal, f"step {goal}", 120)

        running.compose("up", "-d", *SERVICES)
        assert "the store in /store has train 240, val 48 images" in running.logs("store")
        go_on(5)
        scale(6)
        began = time.monotonic()
        prometheus = _watching(running)
        eventually(lambda: _asked(running, 'count(up{job="augmenter"} == 1)') == 6, "every replica scraped", 60)
        print(f"six replicas were scraped {time.monotonic() - began:.1f} s after all had joined")
        docker("kill", "-s", "KILL", running.containers("augmenter")[0])
        go_on(10)
        running.compose("restart", "loader")
        go_on(10)
        scale(1)
        running.compose("restart", "trainer")
        eventually(lambda: "going on from step" in running.logs("trainer"), "the trainer goes on")
        go_on(5)
        scale(4)
        eventually(lambda: not _unanswered(prometheus), "an answer to every question of the dashboards", 90)
        print(f"a dashboard's question or rule without an answer: {_unanswered(prometheus)}")
        targets = prometheus.ask("targets")["activeTargets"]
        assert {target["labels"]["job"] for target in targets} == {"loader", "trainer", "augmenter", "prometheus"}
        groups = prometheus.ask("rules")["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
        assert not _ended(running), "it was asked while it trained"
        eventually(lambda: _ended(running), "the end", 240)
        assert running.inspect("trainer")[0]["State"]["ExitCode"] == 0, running.logs("trainer")
        summary = running.file("summary.json")
        assert summary["steps"] == undisturbed["steps"]
        assert summary["receipt"]["digest"] == undisturbed["receipt"]["digest"]
        assert summary["final"] == undisturbed["final"]


def test_two_trainers_in_one_container_as_on_two_gpus(tmp_path: Path) -> None:
    # The file for GPUs, less its GPUs: two trainers under torchrun on CPUs, each with half of every batch.
    overlay = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text("utf-8"))
    del overlay["services"]["trainer"]["deploy"]
    # Only an engine with all of root's rights may lift it.
    del overlay["services"]["trainer"]["ulimits"]
    cpu = tmp_path / "compose.cpu.yaml"
    cpu.write_text(yaml.safe_dump(overlay))
    settings = {"TRAIN__EPOCHS": 1, "TRAIN__DROP_EPOCHS": "[]", "AUGMENTER__BATCH_SECONDS": 0.2}
    variables = {"PARALLEL": "data", "TRAINER_IMAGE": "fourstage-trainer"}
    with stack(tmp_path, settings, ("compose.yaml", str(cpu)), **variables) as running:
        running.compose("up", "-d", *SERVICES)
        eventually(lambda: _asked(running, 'count(up{job="trainer"} == 1)') == 2, "both trainers scraped", 60)
        eventually(lambda: running.step() > 10, "steps")
        for described in running.inspect("trainer"):
            _check_locked_down(described, "trainer")
        running.compose("restart", "trainer")
        eventually(lambda: "going on from step" in running.logs("trainer"), "the trainers go on", 60)
        eventually(lambda: _ended(running), "the end", 120)
        assert running.inspect("trainer")[0]["State"]["ExitCode"] == 0, running.logs("trainer")
        summary = running.file("summary.json")
        assert (summary["state"], summary["steps"]) == ("done", 125)
