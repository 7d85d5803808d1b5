"""One pipeline for the ranks of torch.distributed on one machine.

It lives as long as a rank that holds it: the one that ends first takes nothing away from the rest. Only rank 0, which
started it, watches it and starts again what dies.
"""

from pathlib import Path

from fourstage import ranks
from fourstage.engine.pipeline import Pipeline
from fourstage.engine.processes import ADDRESS, hold
from fourstage.errors import FourstageError, SettingsError, of_the_machine
from fourstage.process import private_folder
from fourstage.settings import Settings

_ELSEWHERE = "for ranks on several machines start one and name its loader's address, tcp://HOST:PORT"


class Share:
    """Another process's pipeline, held."""

    failure: FourstageError | None = None

    def __init__(self, folder: Path) -> None:
        """Raises FourstageError where it is not on this machine."""
        self.folder = folder
        self.address = f"file:{folder / ADDRESS}"
        self._held = hold(folder)

    def close(self) -> None:
        """Let go."""
        self._held.let_go()


def share(store: Path, settings: Settings, *, workers: int) -> "Pipeline | Share":
    """One service for all ranks of torch.distributed, started by rank 0; a collective call.

    Raises FourstageError on every rank unless all of them run on one machine.
    """
    service: Pipeline | Share | None = None
    failure: FourstageError | None = None
    rank, _ = ranks.place()
    folder = Path()
    if rank == 0:
        try:
            folder = private_folder(settings.sockets)
            service = Pipeline(store, folder, settings, workers=workers, shared=True)
        except FourstageError as error:
            failure = error
        except Exception as error:
            # Whatever it is: the others wait for what is told next.
            failure = of_the_machine(error) or FourstageError(f"cannot start the service: {error}")
    folder = Path(ranks.tell(str(folder)))
    if rank != 0:
        try:
            service = Share(folder)
        except FourstageError as error:
            failure = SettingsError(f"rank {rank} does not find the service of rank 0: {error}", hint=_ELSEWHERE)
    if ranks.all_agree(failure is None) and service is not None:
        return service
    if service is not None:
        service.close()
    raise failure or FourstageError("another rank has no service", hint=_ELSEWHERE)
