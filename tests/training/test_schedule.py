import math

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import recipe_with

from landmarks.running.recipe import load
from landmarks.running.settings import TrainingSettings
from landmarks.training import schedule
from landmarks.training.schedule import learning_rate


def test_the_published_steps():
    settings = load(["--recipe", "softmax"]).training
    rates = [learning_rate(settings, mini_epochs, 499) for mini_epochs in (0, 169.99, 170, 329, 330, 379.5, 380, 498)]
    assert rates == [2e-4, 2e-4, 1e-4, 1e-4, 4e-5, 4e-5, 2e-5, 2e-5]
    fewer = [learning_rate(settings, mini_epochs, 193) for mini_epochs in (0, 65.9, 66, 127, 128, 146.9, 147, 192)]
    assert fewer == rates  # the same parts of a run over 193 shards
    in_mini_epochs = settings.model_copy(update={**{"learning_rate_steps": {170: 1e-4, 330: 4e-5, 380: 2e-5}}})
    assert [learning_rate(in_mini_epochs, mini_epochs, 499) for mini_epochs in (169.99, 170, 330, 380)] == [
        2e-4, 1e-4, 4e-5, 2e-5,
    ]  # fmt: skip


def test_cosine_falls_from_the_first_rate_to_zero():
    settings = TrainingSettings(schedule="cosine", learning_rate=0.1)
    assert learning_rate(settings, 0, 10) == 0.1
    assert learning_rate(settings, 5, 10) == pytest.approx(0.05)
    assert learning_rate(settings, 2.5, 10) == pytest.approx(0.1 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate(settings, 10, 10) == pytest.approx(0)


def test_the_rate_rises_to_its_start_and_then_falls():
    settings = TrainingSettings(schedule="cosine", learning_rate=0.1, warm_up=2)
    rates = [learning_rate(settings, mini_epochs, 10) for mini_epochs in (0, 1, 1.5, 2, 6, 10)]
    assert rates == pytest.approx([0, 0.05, 0.075, 0.1, 0.05, 0])


@pytest.fixture
def recipe(tiny_mirror, tmp_path):
    return load(
        [
            f"--mirror={tiny_mirror}", f"--work={tmp_path}", "--backbone=MobileNet", "--weights=none",
            "--image-size=32", "--crop=1", "--batch-size=3", "--epochs=1",
        ]
    )  # fmt: skip


class Shard:
    name = "images_000"
    refused: list[tuple[str, str]] = []

    def __init__(self, ids):
        self.ids = ids


CLASSES = pd.Series({f"{number}": number % 2 for number in range(8)})


SHARD = Shard([f"{number}" for number in range(10)])  # 8 and 9 have no class


def test_streaming_yields_every_photo_with_a_class_and_fills_up_the_last_batch(recipe):
    class Mirror:
        def stream(self, split, names):
            return iter([SHARD] * len(names))

    settings = recipe_with(recipe, epochs=2).training
    (_, first), (_, second) = schedule.stream(settings, Mirror(), ["images_000"], CLASSES, 0)
    assert len(first) == len(second) == 9 and set(first) == set(second) == set(CLASSES.index)
    assert first != second
    assert [ids for _, ids in schedule.stream(settings, Mirror(), ["images_000"], CLASSES, 1)] == [second]
    without = schedule.stream(settings, Mirror(), ["images_000"], CLASSES[:0], 1)
    assert [ids for _, ids in without] == [[]]


def test_hosts_share_the_shards_out_and_all_have_as_many_rounds(recipe, monkeypatch):
    class Mirror:
        def stream(self, split, names):
            return iter([type("Of", (Shard,), {"name": name})(SHARD.ids) for name in names])

    settings = recipe_with(recipe, epochs=1, batch_size=6).training
    names = [f"images_{number:03d}" for number in range(5)]
    alone = {shard.name: ids for shard, ids in schedule.stream(settings, Mirror(), names, CLASSES, 0)}
    monkeypatch.setattr(schedule.hosts, "count", 3)
    rounds = []
    for number in range(3):
        monkeypatch.setattr(schedule.hosts, "number", number)
        rounds.append([(shard.name, ids) for shard, ids in schedule.stream(settings, Mirror(), names, CLASSES, 0)])
    seen = [host[turn] for turn in range(2) for host in rounds]
    assert [name for name, _ in seen] == [*alone, "no shard"] and seen[-1][1] == []
    for name, ids in seen[:-1]:
        assert ids == alone[name][:8]  # four batches of two, which the eight photos fill
    monkeypatch.setattr(schedule.hosts, "number", 1)
    assert [shard.name for shard, _ in schedule.stream(settings, Mirror(), names, CLASSES, 3)] == [list(alone)[4]]


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_variables_learn_at_rates_of_their_own(kind, tmp_path):
    """Under a slope of 1 a first step of Adam, or of SGD, is the learning rate."""
    made = schedule.optimizer(TrainingSettings(optimizer=kind, learning_rate=0.1), [1.0, 0.5, 0.25])
    again = type(made).from_config(made.get_config())
    for one in (made, again):
        variables = [keras.Variable(np.zeros(2, "float32")) for _ in range(3)]
        one.build(variables)
        one.apply([keras.ops.ones(2)] * 3)
        moved = [keras.ops.convert_to_numpy(variable)[0] for variable in variables]
        np.testing.assert_allclose(moved, [-0.1, -0.05, -0.025], rtol=1e-4)


def test_all_learn_alike_where_no_rates_are_given():
    assert type(schedule.optimizer(TrainingSettings(), [])).__name__ == "Adam"
