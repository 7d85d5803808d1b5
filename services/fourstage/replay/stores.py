"""Which store a run was trained on, opened and recognised."""

from pathlib import Path

from fourstage.errors import SettingsError
from fourstage.replay.recorded import Recorded
from fourstage.store import Store, open_store
from fourstage.store.manifest import read_manifest


def store_of(run: Recorded, given: Path | None) -> Store:
    """Open the run's store: the one given, or where the run's directory says that it was.

    Raises StoreError where it cannot be opened, SettingsError where it is not named or is another one.
    """
    path = given or run.store
    if path is None:
        raise SettingsError(f"{run.path} does not say where its store is", hint="give --store")
    store = open_store(path)
    if not is_store_of(run, store):
        raise SettingsError(
            f"{run.path} was trained on the store {run.fingerprint:.12}, {path} is {store.fingerprint:.12}",
            hint="give the --store that the run was trained on",
        )
    return store


def is_store_of(run: Recorded, store: Store) -> bool:
    """Whether the run was trained on this store, also before further splits were added to it.

    True where the run does not know its store: the digests of its steps will tell.
    """
    if run.fingerprint in ("", store.fingerprint):
        return True
    try:
        from fourstage.evaluation.evaluate import grew_from
    except ModuleNotFoundError:
        return False  # It needs torch.
    return grew_from(read_manifest(store.path), run.fingerprint)
