"""The figures that are promised of speed, in short forms: each fails only where it is missed by far.

Two things are measured in turn, so that whatever else the machine does happens to both, and the ratio of the medians is
judged, never a time by itself. Noise makes either look slower at random; a real loss is there at each attempt. So the
whole measurement is made a second time where the first one fails, and the better one counts. The limits are the figures
times 0.7: two cores that others use as well were seen to shift a ratio by a fifth.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import loopback, pipeline, prepare, scheduler, stages
from fourstage.demo import CLASSES, draw_photograph
from fourstage.store import open_store
from fourstage.store.prepare import prepare as prepare_store
from fourstage.store.sources import read_source
from fourstage.trace import STAGE_ROWS

ROUNDS = 3
WORKERS = 2
ORIGINALS, IMAGES = 40, 600


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, prepare.Work]:
    """A source of 600 files, forty photographs of 500x375 over and over: in pixels and bytes as ImageNet's are."""
    folder = tmp_path_factory.mktemp("originals")
    grain = np.random.default_rng(0).integers(0, 24, (375, 500, 3), np.uint8)
    for number in range(ORIGINALS):
        pixels = cv2.resize(draw_photograph(0, number % len(CLASSES), number), (500, 375)) // 8 * 7 + grain
        path = folder / "drawn" / CLASSES[number % len(CLASSES)] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
    source = folder / "source"
    repeated = prepare.repeat(read_source(folder / "drawn", folder).images, IMAGES, source)
    return source, prepare.Work(repeated, IMAGES, 256, WORKERS)


def in_turn(mine: Callable[[], float], theirs: Callable[[], float]) -> float:
    """The median of one over the median of the other; all are printed, for when it fails."""
    pairs = [(mine(), theirs()) for _ in range(ROUNDS)]
    print(*(f"{one:.4g} / {other:.4g}" for one, other in pairs), sep="\n")
    return statistics.median(pair[0] for pair in pairs) / statistics.median(pair[1] for pair in pairs)


def best(measure: Callable[[], float], *, least: float) -> float:
    """What is measured, at the second attempt where the first is below ``least``; the better of them."""
    found = measure()
    return found if found >= least else max(found, measure())


def lowest(measure: Callable[[], float], *, most: float) -> float:
    """The same where less is better."""
    return -best(lambda: -measure(), least=-most)


def test_order_leases_and_stages_leave_most_of_the_decoders_speed(
    originals: tuple[Path, prepare.Work], tmp_path: Path
) -> None:
    prepare_store(originals[0], tmp_path / "store", size=256, workers=WORKERS)

    def measure() -> float:
        # What was made before the first batch is used counts as well: up to six batches of 128.
        return in_turn(
            lambda: pipeline.pipeline_rate(tmp_path / "store", WORKERS, 7_800, "arena")[0],
            lambda: pipeline.raw_rate(tmp_path / "store", WORKERS, 3_000),
        )

    assert best(measure, least=0.63) >= 0.63, "the figure is 0.90"


def test_keys_checksums_and_files_leave_most_of_a_bare_loops_speed(
    originals: tuple[Path, prepare.Work], tmp_path: Path
) -> None:
    source, work = originals
    stores = (tmp_path / f"store-{number}" for number in range(2 * ROUNDS))

    def measure() -> float:
        return in_turn(lambda: prepare.prepare_rate(source, next(stores), work)[0], lambda: prepare.bare_rate(work)[0])

    assert best(measure, least=0.6) >= 0.6, "the figure is 0.85"


def test_the_bare_loop_makes_the_statistics_that_prepare_makes(
    originals: tuple[Path, prepare.Work], tmp_path: Path
) -> None:
    source, work = originals
    few = prepare.Work(work.originals, ORIGINALS, 64, WORKERS)
    prepare.prepare_rate(source.parent / "drawn", tmp_path / "store", few)
    made = open_store(tmp_path / "store").statistics
    _, sums = prepare.bare_rate(few)
    assert sums.count == made.count == ORIGINALS
    assert np.array_equal(sums.pixels, made.pixel_sums)
    assert np.array_equal(sums.products, made.product_sums)


def test_frames_and_holds_leave_most_of_plain_zeromqs_speed() -> None:
    # About 0.8: pixels take the same way through the kernel, beside them go keys, draws and answers.
    def measure() -> float:
        return in_turn(lambda: loopback.inline_rate(25), lambda: loopback.copy_rate(25))

    assert best(measure, least=0.5) >= 0.5


def test_a_lease_costs_the_same_with_ten_and_with_five_hundred_augmenters(store: Path) -> None:
    # CPU time of the loader, so others on the machine count little; about 1.2, of walks over all workers 10 and more.
    def cost(augmenters: int) -> float:
        (figures,) = scheduler.measure(
            store, augmenters, 1, rows=1, rate=500.0, rounds=ROUNDS, seconds=0.4, loads=("full",)
        )
        print(figures["microseconds_per_lease"])
        return float(figures["microseconds_per_lease"]["median"])

    assert lowest(lambda: cost(500) / cost(10), most=3.0) < 3.0


def test_a_step_takes_as_long_as_the_longest_of_four_stages(store: Path) -> None:
    # Stages that sleep need no core; one after the other they would take 3.7 times as long as the longest.
    seconds = next(stages.permutations())
    assert list(seconds) == list(STAGE_ROWS)

    def measure() -> float:
        return stages.measure(store, seconds, warm_up=8, steps=15)["ratio"]

    assert lowest(measure, most=1.5) < 1.5, "the figure is 1.05"
