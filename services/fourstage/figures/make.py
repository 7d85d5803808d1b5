"""All figures that can be made of some runs, and of each other one why it cannot."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fourstage import rundir
from fourstage.errors import CheckpointError, FourstageError, SettingsError
from fourstage.figures.runs import Run, open_runs
from fourstage.store.progress import ProgressCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fourstage.evaluation import Trained
    from fourstage.store import Store

FOLDER = "figures"
NUMBERS = "figure-1.json"


@dataclass(frozen=True, slots=True)
class Made:
    """A picture that was written, and what it shows."""

    file: Path
    shows: str


@dataclass(frozen=True, slots=True)
class NotMade:
    """A picture that was not, by the name its file would have, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted besides the runs. ``window``: the timeline's first and last batch; None, a typical dozen."""

    out: Path
    store: Path | None
    candidates: int
    window: tuple[int, int] | None
    progress: ProgressCallback


_Maker: TypeAlias = "Callable[[], tuple[Figure, str]]"


def make_figures(run_dirs: Sequence[Path], request: Request) -> tuple[list[Made], list[NotMade]]:
    """Write every figure that can be made into ``request.out``.

    Of several runs curves and figure 1 are drawn together; the others are of one run each and have its name in theirs.
    Raises SettingsError for a directory that holds no run, or cannot be written to, and FourstageError where
    matplotlib is missing.
    """
    try:
        from fourstage.figures import style
    except ModuleNotFoundError as error:
        raise FourstageError(f"figures need {error.name}", hint="pip install 'fourstage[figures]'") from error
    runs = open_runs(run_dirs)
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot write to {request.out}: {error.strerror}", hint="name another --out") from error
    made, not_made = [], []
    with style.house_style():
        for name, maker in _makers(runs, request):
            try:
                figure, shows = maker()
                style.save(figure, request.out / name)
            except FourstageError as error:
                not_made.append(NotMade(name, str(error)))
            except OSError as error:
                raise FourstageError(
                    f"{error.filename}: {error.strerror}", hint="free space, or name another --out"
                ) from error
            except ModuleNotFoundError as error:
                not_made.append(NotMade(name, f"it needs {error.name}; pip install 'fourstage[train]'"))
            else:
                made.append(Made(request.out / name, shows))
    return made, not_made


def _makers(runs: Sequence[Run], request: Request) -> Iterator[tuple[str, _Maker]]:
    yield "learning-curves.png", partial(_learning_curves, runs)
    yield "figure-1.png", partial(_figure_1, runs, request.out / NUMBERS)
    for run in runs:
        suffix = f"-{run.name}.png" if len(runs) > 1 else ".png"
        subject = cache(partial(_subject, run, request.store))
        yield "figure-3" + suffix, partial(_figure_3, run)
        yield "figure-4-left" + suffix, partial(_figure_4_left, subject)
        yield "figure-4-right" + suffix, partial(_figure_4_right, subject, request)
        yield "timeline" + suffix, partial(_timeline, run, request.window)


def _learning_curves(runs: Sequence[Run]) -> "tuple[Figure, str]":
    from fourstage.figures import curves

    return curves.draw(runs), "errors by epoch, loss and learning rate by step"


def _figure_1(runs: Sequence[Run], numbers: Path) -> "tuple[Figure, str]":
    from fourstage.figures import activations

    groups = activations.compare(runs)
    rundir.write_json(numbers, activations.numbers(groups))
    return activations.draw(groups), f"training error by epoch, ReLU and tanh; numbers in {numbers.name}"


def _figure_3(run: Run) -> "tuple[Figure, str]":
    from fourstage.figures import kernels
    from fourstage.trainer import checkpoint

    model = run.settings().model
    if model.name == "none":
        raise FourstageError('the run trains no network: model.name = "none"')
    newest = checkpoint.latest(run.path)
    if newest is None:
        raise CheckpointError("the run has no checkpoint yet", hint="wait for one, or interrupt the run: it writes one")
    figure = kernels.draw(
        kernels.read_kernels(newest.path / checkpoint.MODEL),
        columns=model.columns if model.name == "alexnet" else 1,
        step=newest.state.step,
    )
    return figure, f"the kernels of the first layer after {newest.state.step:,} steps"


def _figure_4_left(subject: "Callable[[], tuple[Trained, Store]]") -> "tuple[Figure, str]":
    from fourstage.figures import predictions

    said = predictions.predict(*subject())
    return predictions.draw(said), f"{len(said)} validation images with their most probable labels"


def _figure_4_right(subject: "Callable[[], tuple[Trained, Store]]", request: Request) -> "tuple[Figure, str]":
    from fourstage.figures import neighbours

    trained, store = subject()
    candidates = min(request.candidates, len(store.split(trained.settings.train_split)))
    rows = neighbours.find(trained, store, candidates=candidates, progress=request.progress)
    return neighbours.draw(rows, candidates=candidates), f"the nearest of {candidates:,} training images to {len(rows)}"


def _timeline(run: Run, window: tuple[int, int] | None) -> "tuple[Figure, str]":
    from fourstage.figures import gantt, passages

    timeline = passages.read_timeline(run.path / rundir.TRACE, split=run.settings().train_split)
    first, last = window or passages.steady_window(timeline)
    figure = gantt.draw(timeline, first, last)
    return figure, f"which batch is in which stage while {first} to {last} are trained on"


def _subject(run: Run, store: Path | None) -> "tuple[Trained, Store]":
    """The run's network and the store that it is shown."""
    if store is None:
        raise FourstageError("it shows stored images", hint="give --store")
    from fourstage.evaluation import load_trained
    from fourstage.store import open_store

    opened = open_store(store)
    trained = load_trained(run.path)
    if trained.classes != len(opened.classes):
        raise FourstageError(
            f"the network knows {trained.classes} classes and the store {store} has {len(opened.classes)}",
            hint="give the --store that the run was trained on",
        )
    return trained, opened
