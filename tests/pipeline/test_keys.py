"""A service over TCP with keys, as processes of their own: the same batches, and nothing for anybody else."""

import base64
import json
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fourstage.errors import PeerLostError, SettingsError
from fourstage.stream import BatchStream
from tests.pipeline.harness import CROP, Services, complete_run, eventually, fourstage, services
from tests.ports import free_address

BATCH, EPOCHS = 8, 1
RUN = (f"batch_size={BATCH}", f"augmenter.crop={CROP}", f"train.epochs={EPOCHS}", "receipt=pixels")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "ours"
    done = fourstage("keys", "init", str(folder))
    assert done.returncode == 0, done.stderr
    for role in ("loader", "trainer", "augmenter"):
        assert f"FOURSTAGE_KEYS={folder / role}" in done.stdout
    return folder


@pytest.fixture(scope="module")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "theirs"
    assert fourstage("keys", "init", str(folder)).returncode == 0
    return folder


def log_of(running: Services, name: str) -> str:
    return (running.folder / f"{name}.log").read_text()


def start_stranger(running: Services, other_keys: Path) -> None:
    """An augmenter with the keys of another service, refused by the loader; it goes on knocking."""
    ours, running.keys = running.keys, other_keys
    running.start_augmenter("stranger")
    running.keys = ours
    eventually(lambda: "refused a connection" in log_of(running, "loader"), "the loader's words")
    eventually(lambda: "no connection to the loader" in log_of(running, "stranger"), "the stranger's words")


def test_a_run_with_keys_has_the_same_bytes_and_a_stranger_gets_none(
    store: Path, tmp_path: Path, keys: Path, other_keys: Path
) -> None:
    flags = [part for setting in RUN for part in ("--set", setting)]
    # Processes of one run speak through Unix sockets: a role's keys in their settings are not in their way.
    ordinary = complete_run(
        store,
        tmp_path / "ordinary",
        "--recipe",
        "drain",
        "--augmenters",
        "1",
        *flags,
        "--set",
        f"keys={keys / 'trainer'}",
    )
    settings = [*RUN, "transport=inline", "augmenter.batch_seconds=0.05"]
    with services(store, tmp_path, 2, settings, loader=free_address(), keys=keys) as running:
        start_stranger(running, other_keys)
        running.start_trainer("drain")
        assert running.processes["trainer"].wait(120) == 0, log_of(running, "trainer")
        assert running.metric("loader", "fourstage_refused_handshakes_total", reason="wrong server") >= 1
        assert running.metric("loader", "fourstage_peers", role="augmenter") == 2
        assert running.metric("stranger", "fourstage_batches_total", stage="transform") == 0
        assert running.processes["stranger"].poll() is None
        # Refused all the time, it ends at the first signal all the same.
        running.signal("stranger", signal.SIGTERM)
        assert running.processes["stranger"].wait(30) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["receipt"]["digest"] == ordinary["receipt"]["digest"]
    assert summary["augmenters"] == 2
    assert "fourstage keys init" in log_of(running, "stranger")
    assert "stranger" not in log_of(running, "loader")
    assert log_of(running, "stranger").count("no connection") <= 2


def test_a_batch_stream_takes_its_keys_from_the_settings(store: Path, tmp_path: Path, keys: Path) -> None:
    wanted = {"augmenter.crop": CROP, "transport": "inline"}
    with BatchStream(store, batch_size=BATCH, workers=1, settings={"augmenter.crop": CROP}) as stream:
        expected = next(iter(stream))
    with services(store, tmp_path, 1, loader=free_address(), keys=keys) as running:
        with_keys = {**wanted, "keys": str(keys / "trainer")}
        with BatchStream(running.address, batch_size=BATCH, settings=with_keys) as stream:
            assert next(iter(stream))["images"].equal(expected["images"])
        with pytest.raises(PeerLostError, match="set keys"):
            BatchStream(running.address, batch_size=BATCH, settings=wanted, timeout=2.0)
    with pytest.raises(SettingsError, match="keys"):
        BatchStream(store, batch_size=BATCH, settings=with_keys)


def test_whole_keys_are_kept_and_only_if_missing_calls_it_well(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: fourstage("keys", "init", str(tmp_path), "--if-missing"), range(2)))
    assert [done.returncode for done in both] == [0, 0]
    assert sorted(done.stdout.split()[0] for done in both) == ["kept", "made"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.key*")}
    again = fourstage("keys", "init", str(tmp_path))
    assert again.returncode == 2
    assert "--if-missing keeps them" in again.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.key*")} == before


@pytest.mark.parametrize("role", ["loader", "trainer", "augmenter"])
def test_a_process_with_wrong_keys_ends_in_words(store: Path, tmp_path: Path, keys: Path, role: str) -> None:
    arguments = {
        "loader": ["--store", str(store)],
        "trainer": ["--run-dir", str(tmp_path / "run"), "--settings", "drain"],
        "augmenter": [],
    }[role]
    address = ["--set", f"loader.address={free_address()}"]
    wrong = keys / ("augmenter" if role == "loader" else "loader")
    for folder, words in ((wrong, f"and this is the {role}"), (keys, f"this process takes {keys / role}")):
        done = fourstage(role, *arguments, *address, "--set", f"keys={folder}")
        assert done.returncode == 2
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_nothing_that_a_run_shows_or_writes_holds_a_secret(store: Path, tmp_path: Path, keys: Path) -> None:
    secrets_ = [
        line.split('"')[1].encode()
        for path in keys.rglob("*.key_secret")
        for line in path.read_text().splitlines()
        if "secret-key" in line
    ]
    assert len(secrets_) == 3
    with services(store, tmp_path, 1, [*RUN, "transport=inline"], loader=free_address(), keys=keys) as running:
        with_keys = {"augmenter.crop": CROP, "transport": "inline", "keys": str(keys / "trainer")}
        with BatchStream(running.address, batch_size=BATCH, settings=with_keys) as stream:
            next(iter(stream))
            (inbox,) = stream._source._feed._inboxes.values()
            secret = inbox.spec.secret
            secrets_ += [secret, secret.hex().encode(), base64.b64encode(secret), repr(secret)[2:-1].encode()]
        running.start_trainer("drain")
        eventually(lambda: "run" in [path.name for path in tmp_path.iterdir()], "the run's folder")
        shown = {}
        for name in ("loader", "augmenter-0", "trainer"):
            eventually((tmp_path / f"{name}.json").exists, f"{name} is up")
            page = json.loads((tmp_path / f"{name}.json").read_text())["metrics"]
            for part in ("metrics", "healthz"):
                with urllib.request.urlopen(f"{page}/{part}", timeout=10) as answer:
                    shown[f"{name} {part}"] = answer.read()
        assert running.processes["trainer"].wait(120) == 0, log_of(running, "trainer")
    shown |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"settings.toml", "status.json", "summary.json", "loader.log", "loader.json"} <= {
        Path(n).name for n in shown
    }
    for name, data in shown.items():
        for secret in secrets_:
            assert secret not in data, name


def test_keys_are_added_and_revoked_by_name(tmp_path: Path) -> None:
    copy = tmp_path / "keys"
    assert fourstage("keys", "init", str(copy)).returncode == 0
    added = fourstage("keys", "add", str(copy), "augmenter-7")
    assert added.returncode == 0, added.stderr
    assert f"made {copy / 'augmenter-7'}" in added.stdout
    assert str(copy / "loader" / "peers" / "augmenter-7.key") in added.stdout
    again = fourstage("keys", "add", str(copy), "augmenter-7")
    assert again.returncode == 2
    assert "has a peer augmenter-7 already" in again.stderr
    revoked = fourstage("keys", "revoke", str(copy), "augmenter-7")
    assert revoked.returncode == 0, revoked.stderr
    assert not list(copy.rglob("augmenter-7*"))
    for wrong in (("add", "loader-2"), ("revoke", "augmenter-9")):
        done = fourstage("keys", wrong[0], str(copy), wrong[1])
        assert done.returncode == 2
        assert repr(wrong[1]) in done.stderr


@pytest.mark.parametrize("role", ["loader", "trainer", "augmenter"])
def test_nothing_leaves_the_machine_without_keys(store: Path, tmp_path: Path, role: str) -> None:
    arguments = {
        "loader": ["--store", str(store)],
        "trainer": ["--run-dir", str(tmp_path / "run"), "--settings", "drain"],
        "augmenter": [],
    }[role]
    done = fourstage(role, *arguments, "--set", "loader.address=tcp://192.0.2.1:5555")
    assert done.returncode == 2
    for words in ("'tcp://192.0.2.1:5555'", "fourstage keys init DIR", f"FOURSTAGE_KEYS=DIR/{role}"):
        assert words in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    with pytest.raises(SettingsError, match="fourstage keys init DIR"):
        BatchStream("tcp://192.0.2.1:5555", timeout=1.0)


def test_a_receiver_elsewhere_needs_keys_and_no_local_run_has_one(store: Path, tmp_path: Path) -> None:
    run_dir = ("--run-dir", str(tmp_path / "run"))
    elsewhere = ("--set", "receiver=tcp://192.0.2.1:5555")
    done = fourstage("trainer", *run_dir, "--settings", "drain", *elsewhere)
    assert done.returncode == 2
    assert "receiver = 'tcp://192.0.2.1:5555'" in done.stderr
    done = fourstage("run", "--store", str(store), *run_dir, "--recipe", "drain", *elsewhere)
    assert done.returncode == 2
    assert "never leave this machine" in done.stderr
    assert not (tmp_path / "run").exists()
