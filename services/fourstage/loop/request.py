"""What a stream's arguments mean: its settings, and the OPEN that asks a loader for it."""

from collections.abc import Mapping
from typing import Any

from fourstage.errors import SettingsError
from fourstage.resolve import load_settings
from fourstage.settings import Settings
from fourstage.views import Kind, view_of
from fourstage.wire.messages import Open

EPOCHS = 1 << 20
"""So many that no loop comes to their end, and few enough that every batch has a number."""
_NAMES = (
    "augment", "augmenter.crop", "batch_size", "colour_divide", "colour_epochs", "colour_scale", "colour_std",
    "corrupt_consecutive", "corrupt_count", "corrupt_share", "crop_chunk", "crop_positions", "keys", "loader.trainers",
    "mean_place", "on_corrupt", "preset", "receiver", "remainder", "seed", "sockets", "subtract", "transport", "window",
)  # fmt: skip
"""What a stream takes from the settings; those of the processes are for whoever starts them."""
_SECTIONS = ("augmenter.", "loader.", "metrics.")


def resolve(
    recipe: str, single: Mapping[str, Any], arguments: Mapping[str, Any], *, starts_processes: bool
) -> Settings:
    """The recipe, single settings over it, and arguments, which are None where they were not given, over these.

    Raises SettingsError for a value that is not accepted and for a setting that would have no effect.
    """
    for name in single:
        of_processes = name.startswith(_SECTIONS) and name not in ("loader.address", "loader.trainers")
        alone = name in ("keys", "loader.trainers") and starts_processes
        if (name in _NAMES and not alone) or (of_processes and starts_processes):
            continue
        where = (
            "where it uses a running service" if of_processes else "that starts its own processes" if alone else "here"
        )
        raise SettingsError(
            f"settings[{name!r}] has no effect on a BatchStream {where}", hint=f"it takes {', '.join(_NAMES)}"
        )
    given = {name: value for name, value in arguments.items() if value is not None}
    return load_settings(recipe, flags={**single, **given})


def request(settings: Settings, *, split: str, view: Kind, shuffle: bool | None, rank: int, world: int) -> Open:
    """The OPEN of a stream without end."""
    return Open(
        stream=bytes(16), split=split, view=view_of(settings, view),
        batch_size=settings.batch_size, remainder=settings.remainder,
        shuffle=view == "random" if shuffle is None else shuffle, seed=settings.seed, rank=rank, world=world,
        start=0, epochs=EPOCHS, end=0, window=0 if settings.window == "auto" else settings.window, fingerprint="",
        identity=b"", transport=settings.transport, receiver="", side="", worker=b"",
        on_corrupt=settings.on_corrupt, secret=bytes(16),
    )  # fmt: skip
