"""Two run directories compared, with the stores that are at hand."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fourstage.errors import FourstageError
from fourstage.replay.compare import Comparison, compare
from fourstage.replay.recorded import Recorded, read_run
from fourstage.replay.remake import Remaker
from fourstage.replay.stores import is_store_of, store_of
from fourstage.store import open_store


def diff(a: Path, b: Path, stores: Sequence[Path] = ()) -> Comparison:
    """Compare two runs. stores: each run's is taken of these; none given, each run's own is looked for where the run
    says that it was, and without it the comparison's notes say what could not be found out.

    Raises SettingsError for directories without runs or with runs that cannot be compared, and for stores that are
    none of a run's; StoreError for one that cannot be opened.
    """
    runs = (read_run(a), read_run(b))
    with ExitStack() as stack:
        notes: list[str] = []
        mine, theirs = (_remaker(run, stores, stack, notes) for run in runs)
        return compare(runs, (mine, theirs), notes)


def _remaker(run: Recorded, given: Sequence[Path], stack: ExitStack, notes: list[str]) -> Remaker | None:
    """What makes the run's batches again, open until the stack closes; None, and a note why, where nothing can.

    Raises StoreError and SettingsError where stores were given and none is this run's.
    """
    if run.doubt:
        notes.append(f"the batches of {run.path} cannot be made again: {run.doubt}")
        return None
    try:
        own = next((path for path in given if is_store_of(run, open_store(path))), given[0] if given else None)
        return stack.enter_context(Remaker(run.settings, store_of(run, own)))
    except FourstageError as error:
        if given:
            raise
        notes.append(str(error))
        return None
