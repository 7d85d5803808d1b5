"""The three services as processes: parse, build, announce, run, close. Containers and the local engine start them."""

import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import fourstage
from fourstage import locks, rundir
from fourstage.logs import configure_logging
from fourstage.metrics import Role
from fourstage.process import StopFlag, raise_file_limit, sockets_folder
from fourstage.settings import MetricsSettings, Settings
from fourstage.telemetry import Telemetry
from fourstage.wire.security import load

if TYPE_CHECKING:
    import torch

    from fourstage.decoding import DeviceDecoding

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launch:
    """What a service was started with, besides its settings."""

    settings: Settings
    announce: Path | None
    lifeline: bool
    debug: bool


@dataclass(frozen=True, slots=True)
class Started:
    """What every service has."""

    stop: StopFlag
    telemetry: Telemetry
    sockets: Path
    page: str


@contextmanager
def started(role: Role, name: str, launch: Launch) -> Iterator[Started]:
    """Logs, signals, metrics, and the folder of sockets of one service, given back in the end."""
    configure_logging(name, debug=launch.debug)
    raise_file_limit()
    stop = StopFlag()
    stop.on_signals()
    if launch.lifeline:
        stop.on_lifeline(sys.stdin.fileno())
    telemetry = Telemetry(role, _own_pages(launch.settings.metrics, os.environ), fourstage.__version__)
    with sockets_folder(launch.settings.sockets) as sockets:
        page = telemetry.serve()
        log.info("pid %d, metrics at %s/metrics", os.getpid(), page)
        try:
            yield Started(stop, telemetry, sockets, page)
        finally:
            telemetry.close()
            if stop.orphaned:
                # Whoever made the folder cannot remove it any more.
                shutil.rmtree(sockets, ignore_errors=True)
    log.info("stopped%s", f" ({stop.reason})" if stop.reason else "")


def run_loader(launch: Launch, store_path: Path) -> int:
    """Serve a store until told to stop."""
    from fourstage.loader.service import LoaderService
    from fourstage.store import open_store

    store = open_store(store_path)
    with started("loader", "loader", launch) as base:
        service = LoaderService(
            store,
            launch.settings.loader,
            sockets=base.sockets,
            telemetry=base.telemetry,
            stop=base.stop,
            security=load(launch.settings.keys, "loader"),
        )
        try:
            configured = launch.settings.loader.address
            if configured.startswith("file:"):
                both = f"{service.address}\n{service.trainers}\n"
                rundir.write_whole(Path(configured.removeprefix("file:")), both, durable=False)
            log.info("serving %s to augmenters at %s, to trainers at %s", store_path, service.address, service.trainers)
            announce(launch, base, "loader", address=service.address, trainers=service.trainers)
            service.run()
        finally:
            service.close()
    return 0


def run_augmenter(launch: Launch, name: str) -> int:
    """Make batches until told to stop."""
    from fourstage.augmenter.service import AugmenterService

    with started("augmenter", name, launch) as base:
        service = AugmenterService(
            launch.settings.loader.address,
            launch.settings.augmenter,
            name=f"{name}@{socket.gethostname()}",
            telemetry=base.telemetry,
            stop=base.stop,
            security=load(launch.settings.keys, "augmenter"),
        )
        try:
            announce(launch, base, name)
            service.run()
        finally:
            service.close()
    return 0


def run_trainer(launch: Launch, run_dir: Path, *, resume: bool, take_over: Callable[[], None] = lambda: None) -> int:
    """Train to the end; 130 where it was interrupted. take_over: called once nobody else writes to the directory.

    Among several trainers (torchrun's RANK and WORLD_SIZE) also an interrupted one ends with 0, because torchrun
    takes anything else for a failure; ``summary.json`` says which it was.
    """
    from fourstage.trainer.device import choose_device
    from fourstage.trainer.group import Group
    from fourstage.trainer.intake import Intake
    from fourstage.trainer.layout import layout
    from fourstage.trainer.service import TrainerService

    settings = launch.settings
    place = layout(settings, os.environ)
    name = "trainer" if place.world == 1 else f"trainer-{place.rank}"
    with started("trainer", name, launch) as base:
        announce(launch, base, name)
        device = choose_device(settings)
        decoding = _decoding(settings, device, name, base.telemetry)
        intake = Intake(
            settings, place, name=name, sockets=base.sockets, telemetry=base.telemetry, stop=base.stop,
            decoding=decoding,
        )  # fmt: skip
        with (
            closing(intake),
            _alone(run_dir, base, take_over) if place.rank == 0 else nullcontext(),
            Group(place, device, base.stop, base.telemetry.waiting_for_others) as group,
        ):
            service = TrainerService(
                settings,
                run_dir,
                group=group,
                device=device,
                intake=intake,
                decoding=decoding,
                name=name,
                resume=resume,
                telemetry=base.telemetry,
                stop=base.stop,
            )
            try:
                state = service.run()
            finally:
                service.close()
    return 0 if state == "done" or place.world > 1 else 130


@contextmanager
def _alone(run_dir: Path, base: Started, take_over: Callable[[], None]) -> Iterator[None]:
    """Nobody else writes to the run's directory: a trainer whose engine was killed ends by itself, after its step and
    a checkpoint."""
    with locks.held_once_free(run_dir, locks.TRAINER, base.stop, base.telemetry.turn) as after_another:
        for stale in (rundir.STATUS, rundir.SUMMARY) if after_another else ():
            (run_dir / stale).unlink(missing_ok=True)
        take_over()
        yield


def _decoding(settings: Settings, device: "torch.device", name: str, telemetry: Telemetry) -> "DeviceDecoding | None":
    """What a trainer that decodes itself needs; which pixels it makes depends on the device."""
    if settings.decode == "augmenter":
        return None
    from fourstage.decoding import DeviceDecoding

    return DeviceDecoding(settings, device, name=name, telemetry=telemetry)


def _own_pages(settings: MetricsSettings, environment: Mapping[str, str]) -> MetricsSettings:
    """Several trainers of one machine (torchrun's LOCAL_RANK) have ports in a row."""
    neighbour = int(environment.get("LOCAL_RANK", 0))
    return settings.model_copy(update={"port": settings.port + neighbour}) if settings.port else settings


def announce(launch: Launch, base: Started, name: str, **facts: str) -> None:
    """Say in a file that the service is up, and where its pages are.

    The file is the one that the service was started with; of several trainers each has its own beside it.
    """
    if launch.announce is not None:
        path = launch.announce.with_name(f"{name}.json") if name.startswith("trainer-") else launch.announce
        rundir.write_whole(path, json.dumps({"pid": os.getpid(), "metrics": base.page, **facts}), durable=False)
