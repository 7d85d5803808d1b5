"""One trainer's place among those that were started: which part of the network and of each batch is whose.

``columns`` gives each of two processes half of the kernels (paper, section 3.2); ``data`` gives each a share of every
batch; replicas of column pairs do both. Ranks count columns first: 0 and 1 are the columns of the first replica.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fourstage.errors import SettingsError
from fourstage.settings import Settings

COLUMNS = 2
"""Halves of the kernels, one for each GPU of the paper."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One process's place among ``world``. columns: processes that share one network, 1 or 2."""

    rank: int = 0
    world: int = 1
    columns: int = 1

    @property
    def column(self) -> int:
        """Which half of the kernels is this process's."""
        return self.rank % self.columns

    @property
    def replica(self) -> int:
        """Which share of each batch is this process's."""
        return self.rank // self.columns

    @property
    def replicas(self) -> int:
        """Shares that each batch is cut into."""
        return self.world // self.columns


def layout(settings: Settings, environment: Mapping[str, str]) -> Layout:
    """This process's place, from the variables that torchrun sets (RANK, WORLD_SIZE).

    Raises SettingsError where they do not fit the settings.
    """
    rank, world = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    hint = "start them by torchrun --nproc-per-node N -m fourstage trainer, or all of it by fourstage run"
    if settings.parallel == "none":
        if world > 1:
            raise SettingsError(
                f"{world} trainers were started, parallel = 'none' takes one", hint="set parallel to columns or data"
            )
        return Layout()
    columns = COLUMNS if settings.parallel == "columns" else 1
    if world % columns or world < columns * (settings.replicas or 1):
        raise SettingsError(f"parallel = {settings.parallel!r} with {world} trainers", hint=hint)
    if settings.replicas is not None and world != columns * settings.replicas:
        raise SettingsError(f"replicas = {settings.replicas} with {world} trainers", hint=hint)
    return Layout(rank, world, columns)
