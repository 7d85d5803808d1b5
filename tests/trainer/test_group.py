"""Whose part of the network and of the batch is whose, from what torchrun says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.errors import SettingsError
from fourstage.order import BatchPlan
from fourstage.resolve import load_settings
from fourstage.settings import Settings
from fourstage.trainer.layout import Layout, layout


def settings(*overrides: str) -> Settings:
    return load_settings("alexnet", overrides=overrides, environment={})


def torchrun(rank: int, world: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world)}


def test_without_torchrun_a_trainer_is_alone() -> None:
    assert layout(settings(), {}) == Layout(0, 1, 1)


def test_columns_come_in_pairs() -> None:
    places = [layout(settings("parallel=columns", "replicas=2"), torchrun(rank, 4)) for rank in range(4)]
    assert [(place.replica, place.column, place.replicas) for place in places] == [
        (0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2),
    ]  # fmt: skip


@given(st.integers(1, 6), st.sampled_from([1, 2]), st.integers(0, 200))
def test_the_shares_of_all_replicas_are_the_batch(replicas: int, columns: int, rows: int) -> None:
    whole = BatchPlan(rows + 1, 256).place(0)
    first = 0
    for rank in range(0, replicas * columns, columns):
        place = Layout(rank, replicas * columns, columns)
        share = BatchPlan(rows + 1, 256, rank=place.replica, world=place.replicas).place(0)
        assert share.first == first
        first += share.rows
    assert first == whole.rows


@pytest.mark.parametrize(
    ("overrides", "world", "words"),
    [
        ([], 2, "parallel = 'none' takes one"),
        (["parallel=columns"], 1, "with 1 trainers"),
        (["parallel=columns"], 3, "with 3 trainers"),
        (["parallel=columns", "replicas=2"], 2, "with 2 trainers"),
        (["parallel=data", "replicas=2"], 3, "replicas = 2 with 3 trainers"),
    ],
)
def test_a_wrong_number_of_trainers_is_refused_in_words(overrides: list[str], world: int, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        layout(settings(*overrides), torchrun(0, world))
