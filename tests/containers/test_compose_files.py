"""What the compose files promise, read from them: no engine is needed."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fourstage.resolve import load_settings

ROOT = Path(__file__).parent.parent.parent
FILES = (ROOT / "compose.yaml", ROOT / "docker" / "compose.gpu.yaml")
VARIABLE = re.compile(r"(?<!\$)\$\{?([A-Z_]+)(?::?-([^}]*)\})?")
ONE_SHOT = {"store", "keys"}
"""They end by themselves."""
OURS = {"store", "keys", "loader", "augmenter", "trainer"}
STACKS = {"base": FILES[:1], "gpu": FILES}


def _read(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(values, dict)
    return values


COMPOSE, GPU = map(_read, FILES)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def _commands() -> list[Any]:
    """Every Compose that is installed: version 1 by its own name, version 2 as a plugin of docker."""
    found = [pytest.param(["docker-compose"], id="docker-compose")] if shutil.which("docker-compose") else []
    if shutil.which("docker"):
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        found += [pytest.param(["docker", "compose"], id="docker compose")] if plugin.returncode == 0 else []
    none = pytest.param([], id="none", marks=pytest.mark.skip(reason="neither docker-compose nor docker compose here"))
    return found or [none]


@pytest.mark.parametrize("files", STACKS.values(), ids=STACKS.keys())
@pytest.mark.parametrize("command", _commands())
def test_compose_accepts_the_files(command: list[str], files: tuple[Path, ...]) -> None:
    named = [part for path in files for part in ("-f", str(path))]
    done = subprocess.run([*command, *named, "config", "-q"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d+:\d+", service["user"])
    assert name not in OURS or service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert service["logging"] == {"driver": "local"}
    assert service["restart"] == "on-failure"
    for forbidden in ("cap_add", "privileged", "pid", "ipc", "devices", "container_name"):
        assert forbidden not in service
    assert service.get("network_mode", "none") == "none"
    assert not any("docker.sock" in volume for volume in service["volumes"])


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_SHOT))
def test_every_service_says_whether_it_lives_and_has_time_to_end(name: str) -> None:
    test = SERVICES[name]["healthcheck"]["test"]
    assert "python" not in " ".join(test)
    assert SERVICES[name]["stop_grace_period"]
    if name in OURS:
        assert SERVICES[name]["environment"]["FOURSTAGE_METRICS__ALIVE_FILE"] in test[1]


def test_only_the_two_pages_are_published_and_only_here() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"grafana", "prometheus"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_the_data_network_leads_nowhere() -> None:
    assert COMPOSE["networks"]["data"] == {"internal": True}
    for name in OURS:
        assert SERVICES[name].get("networks", []) in ([], ["data"])


def test_augmenters_can_be_scaled() -> None:
    augmenter = SERVICES["augmenter"]
    assert augmenter["deploy"] == {"replicas": "${AUGMENTERS:-2}"}
    assert augmenter["volumes"][0].startswith("sockets:")


def test_all_three_meet_in_one_folder_of_sockets() -> None:
    for name in ("loader", "augmenter", "trainer"):
        folder = SERVICES[name]["environment"]["FOURSTAGE_SOCKETS"]
        assert f"sockets:{folder}" in SERVICES[name]["volumes"]
    options = COMPOSE["volumes"]["sockets"]["driver_opts"]
    assert options["type"] == "tmpfs"
    assert {"uid=10001", "gid=10001", "mode=0700"} <= set(options["o"].split(","))


def test_each_role_has_its_own_keys_and_cannot_change_them() -> None:
    roles = ("loader", "augmenter", "trainer")
    for role in roles:
        mounted = [volume for volume in SERVICES[role]["volumes"] if volume.startswith("keys-")]
        assert mounted == [f"keys-{role}:{SERVICES[role]['environment']['FOURSTAGE_KEYS']}:ro"]
    made = dict(volume.split(":") for volume in SERVICES["keys"]["volumes"])
    assert made == {f"keys-{role}": f"{SERVICES['keys']['command'][2]}/{role}" for role in roles}


@pytest.mark.parametrize("name", ["loader", "augmenter", "trainer"])
def test_the_settings_of_a_service_are_settings(name: str) -> None:
    environment = {key: _by_default(str(value)) for key, value in SERVICES[name]["environment"].items()}
    settings = load_settings("demo", environment=environment)
    assert settings.metrics.host == "0.0.0.0"
    assert settings.loader.address == ("tcp://*:5555" if name == "loader" else "tcp://loader:5555")


def test_every_variable_is_explained_and_every_explained_one_is_used() -> None:
    shown = dict(re.findall(r"^#([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))
    used = {name for path in FILES for name, _ in VARIABLE.findall(_without_comments(path))}
    assert used == shown.keys()
    for name, default in VARIABLE.findall(_without_comments(FILES[0])):
        assert shown[name] == default, name


def test_the_file_of_settings_takes_nothing_by_itself() -> None:
    lines = (ROOT / "docker" / "settings.env").read_text("utf-8").splitlines()
    assert all(line.startswith("#") for line in lines if line)


def test_the_gpu_file_names_its_devices_and_changes_the_trainer_alone() -> None:
    trainer = GPU["services"]["trainer"]
    (device,) = trainer["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert [_by_default(number) for number in device["device_ids"]] == ["0", "1"]
    assert trainer["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert f"--nproc-per-node={len(device['device_ids'])}" in trainer["entrypoint"]
    for name in OURS - {"trainer"}:
        assert name not in GPU["services"]


def _by_default(text: str) -> str:
    """A value of the file as it is when nothing is set."""
    return VARIABLE.sub(lambda found: found[2] or "", text)


def _without_comments(path: Path) -> str:
    return "\n".join(line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#"))
