"""Figure 4: the images that it shows, what the network says of them, and their neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from fourstage.errors import CorruptSampleError, StoreError
from fourstage.evaluation import Trained, load_trained
from fourstage.figures import neighbours, predictions, style
from fourstage.figures.neighbours import Features, Nearest
from fourstage.figures.pictures import Pictures
from fourstage.figures.predictions import Prediction
from fourstage.store import Store, open_store
from fourstage.store.progress import Progress
from tests.figures.conftest import Drawn
from tests.streams import Expected

CROP, CORNER = 32, 4


@pytest.fixture(scope="module")
def trained(drawn: Drawn) -> Trained:
    return load_trained(drawn.relu, "cpu")


@pytest.fixture(scope="module")
def store(drawn: Drawn) -> Store:
    return open_store(drawn.store)


def images(store: Store, split: str) -> NDArray[np.uint8]:
    """All of a split, decoded by plain reading of its shards, in the order of their keys."""
    expected = Expected.of(store.path, split)
    return np.stack([expected.images[key] for key in sorted(expected.images)])


def features(trained: Trained, store: Store, split: str) -> NDArray[np.float32]:
    """The hidden layer's units of a whole split, one image after the other."""
    part = slice(CORNER, CORNER + CROP)
    centred = images(store, split)[:, part, part] - store.statistics.mean[part, part]
    with torch.no_grad():
        rows = [trained.network.features(torch.from_numpy(image[None]).permute(0, 3, 1, 2)) for image in centred]
    return torch.cat(rows).numpy()


def test_pictures_are_the_stored_images(store: Store) -> None:
    with Pictures(store, "val") as pictures:
        positions = np.array([3, 0, 19])
        assert np.array_equal(pictures.pixels(positions), images(store, "val")[positions])
        assert pictures.classes(positions) == [store.classes[n // 2] for n in positions]


@pytest.mark.parametrize(("count", "expected"), [(20, 20), (7, 7), (1, 1), (10_000, 20)])
def test_positions_are_spaced_evenly_over_the_split(store: Store, count: int, expected: int) -> None:
    with Pictures(store, "val") as pictures:
        positions = pictures.spaced(count)
    assert len(positions) == expected
    gaps = np.diff(np.concatenate(([0], positions, [20])))[1:-1]
    assert expected == 1 or gaps.min() >= 20 // expected
    assert expected == 1 or gaps.max() <= -(-20 // expected)


def test_a_split_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(StoreError, match="'test'"):
        Pictures(store, "test")


def test_an_image_that_cannot_be_decoded_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(jpeg: memoryview, pixels: NDArray[np.uint8]) -> None:
        raise CorruptSampleError(f"{len(jpeg)} bytes, {pixels.shape}")

    monkeypatch.setattr("fourstage.figures.pictures.make_decoder", lambda _: fail)
    with Pictures(store, "val") as pictures, pytest.raises(CorruptSampleError, match=store.splits["val"].index.key(2)):
        pictures.pixels(np.array([2]))


def test_predictions_are_the_mean_of_ten_views(trained: Trained, store: Store) -> None:
    said = predictions.predict(trained, store)
    positions = [(2 * number + 1) * 20 // 16 for number in range(8)]
    assert [each.label for each in said] == [store.classes[position // 2] for position in positions]
    far, mean = 2 * CORNER, store.statistics.mean
    corners = [(0, 0), (0, far), (far, 0), (far, far), (CORNER, CORNER)]
    for each, image in zip(said, images(store, "val")[positions], strict=True):
        assert np.array_equal(each.pixels, image)
        centred = image - mean
        cuts = [centred[top : top + CROP, left : left + CROP] for top, left in corners]
        views = np.stack(cuts + [cut[:, ::-1] for cut in cuts])
        with torch.no_grad():
            logits = trained.network(torch.from_numpy(views).permute(0, 3, 1, 2), None)
        shares = logits.double().softmax(1).mean(0).numpy()
        best = np.argsort(-shares)[:5]
        assert [name for name, _ in each.guesses] == [store.classes[number] for number in best]
        assert [share for _, share in each.guesses] == pytest.approx(list(shares[best]), rel=1e-4)


def test_the_bar_of_the_true_label_has_its_own_colour() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    guesses = (("mite", 0.62), ("tick", 0.3), ("flea$", 0.004))
    figure = predictions.draw([Prediction(pixels, "tick", guesses), Prediction(pixels, "wasp", guesses)])
    assert len(figure.axes) == 4
    for axes, place in ((figure.axes[1], 1), (figure.axes[3], None)):
        bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert [bar.get_width() for bar in bars] == [0.62, 0.3, 0.004]
        for number, bar in enumerate(bars):
            own = to_rgb(style.TRUE) if number == place else to_rgb(style.OTHER)
            assert bar.get_facecolor()[:3] == pytest.approx(own)
        texts = [text.get_text() for text in axes.texts]
        assert texts == ["mite", "62 %", "tick", "30 %", r"flea\$", "<1 %"]
    assert [axes.get_title() for axes in figure.axes[::2]] == ["tick", "wasp"]
    assert "picked by hand" in figure.get_supxlabel()


points = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.integers(-3, 3), min_size=width, max_size=width), min_size=2, max_size=40)
)


@given(points, st.integers(1, 8), st.integers(1, 50))
def test_the_nearest_are_those_of_brute_force_whatever_the_chunks(
    rows: list[list[int]], count: int, chunk: int
) -> None:
    queries, candidates = np.array(rows[:1] + rows[-1:], np.float32), np.array(rows, np.float32)
    nearest = Nearest(queries, count)
    for begin in range(0, len(rows), chunk):
        part = candidates[begin : begin + chunk]
        # Shown under other numbers than their places, which only order equals.
        nearest.show(10 * np.arange(begin, begin + len(part)), part)
    for query, positions, distances in zip(queries, nearest.positions, nearest.distances, strict=True):
        exact = np.sqrt(((candidates.astype(np.float64) - query) ** 2).sum(1))
        order = np.argsort(exact, kind="stable")[:count]
        assert list(positions) == list(10 * order)
        assert distances == pytest.approx(exact[order])


def test_features_are_the_hidden_layer_of_the_centre(trained: Trained, store: Store) -> None:
    expected = features(trained, store, "val")
    assert expected.shape == (20, 64 * 3 * 3)
    found = Features(trained, store.statistics.mean)(images(store, "val"))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_neighbours_are_those_of_a_search_through_everything(trained: Trained, store: Store) -> None:
    moments: list[Progress] = []
    rows = neighbours.find(trained, store, candidates=10_000, progress=moments.append)
    assert [(moment.done, moment.total) for moment in moments] == [(64, 80), (80, 80)]
    training, validation = images(store, "train"), images(store, "val")
    known, asked = features(trained, store, "train"), features(trained, store, "val")
    queries = [2, 6, 10, 14, 18]
    for row, query in zip(rows, queries, strict=True):
        assert np.array_equal(row.query.pixels, validation[query])
        assert row.query.label == store.classes[query // 2]
        nearest = np.argsort(np.linalg.norm(known - asked[query], axis=1), kind="stable")[:6]
        assert [picture.label for picture in row.neighbours] == [store.classes[place // 8] for place in nearest]
        assert np.array_equal([picture.pixels for picture in row.neighbours], training[nearest])
    figure = neighbours.draw(rows, candidates=80)
    assert len(figure.axes) == 5 * 7
    assert "80 training images" in figure.get_supxlabel()
    for number, axes in enumerate(figure.axes):
        row = rows[number // 7]
        picture = (row.query, *row.neighbours)[number % 7]
        assert axes.get_xlabel() == picture.label
        assert axes.xaxis.label.get_color() == (style.TRUE if picture.label == row.query.label else style.QUIET)


def test_only_so_many_training_images_are_searched(trained: Trained, store: Store) -> None:
    moments: list[Progress] = []
    rows = neighbours.find(trained, store, candidates=4, progress=moments.append)
    assert moments[-1].total == 4
    assert {len(row.neighbours) for row in rows} == {4}
    assert neighbours.draw(rows, candidates=4).axes
