"""Loss and error rates against NumPy."""

import numpy as np
import pytest
import torch

from fourstage.trainer.evaluate import Errors, mean_cross_entropy
from fourstage.trainer.rates import ErrorRates

CPU = torch.device("cpu")


def rates(logits: torch.Tensor, labels: list[int], parts: int = 1) -> ErrorRates:
    errors = Errors(logits.shape[1], CPU)
    for rows in np.array_split(np.arange(len(labels)), parts):
        errors.add(logits[rows], torch.tensor(labels)[rows])
    result = errors.result()
    assert result is not None
    return result


@pytest.mark.parametrize("parts", [1, 3, 40])
def test_rates_are_numpys(parts: int) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(40, 9)), generator.integers(0, 9, 40)
    found = rates(torch.from_numpy(logits), labels.tolist(), parts)
    order = np.argsort(-logits, axis=1)
    own = logits[np.arange(40), labels]
    assert found.samples == 40
    assert found.loss == pytest.approx((np.log(np.exp(logits).sum(1)) - own).mean())
    assert found.top1_error == (order[:, 0] != labels).mean()
    assert found.top5_error == (order[:, :5] != labels[:, None]).all(1).mean()


def test_of_equal_logits_the_lower_class_comes_first() -> None:
    found = rates(torch.zeros(8, 8), list(range(8)))
    assert found.top1_error == 7 / 8
    assert found.top5_error == 3 / 8


@pytest.mark.parametrize(("classes", "counted"), [(2, False), (5, False), (6, True)])
def test_top5_needs_six_classes(classes: int, counted: bool) -> None:
    assert (rates(torch.zeros(1, classes), [0]).top5_error is not None) == counted


def test_what_is_not_a_number_is_an_error() -> None:
    logits = torch.zeros(2, 6)
    logits[0, :] = torch.nan
    logits[1, 3] = torch.nan
    found = rates(logits, [0, 0])
    assert found.top1_error == 1.0
    assert found.top5_error == 0.5
    assert np.isnan(found.loss)


def test_nothing_has_no_rates() -> None:
    errors = Errors(10, CPU)
    assert errors.result() is None
    errors.add(torch.empty(0, 10), torch.empty(0, dtype=torch.int64))
    assert errors.result() is None


def test_the_shares_of_a_batch_add_up_to_its_mean() -> None:
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(7) % 4
    whole = torch.nn.functional.cross_entropy(logits, labels)
    shares = [mean_cross_entropy(logits[rows], labels[rows], batch_size=7) for rows in np.split(np.arange(7), [3, 3])]
    torch.testing.assert_close(torch.stack(shares).sum(), whole)
