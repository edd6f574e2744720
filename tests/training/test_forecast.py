import itertools

import pytest
import tiny  # noqa: F401  the backbone
from conftest import recipe_with

from landmarks.training import forecast as forecasts
from landmarks.training.forecast import forecast


@pytest.fixture(autouse=True)
def a_second_a_photo(monkeypatch):
    ticks = itertools.count(0, 8 * forecasts.BATCHES)
    monkeypatch.setattr(forecasts.time, "perf_counter", lambda: next(ticks))


def forecast_of(**settings):
    plain = {"backbone": "Tiny", "weights": "none", "image_size": 32, "batch_size": 8, "mirrored": False}
    recipe = recipe_with(**{**plain, **settings})
    return forecast(recipe.model, recipe.training, recipe.embedding, learnt=100, classes=10, seen=300)


def test_time_follows_epochs_crops_scales_and_views():
    plain = forecast_of(epochs=2, crop=1.0)
    assert (plain.training, plain.embedding) == (100 * 2 * 3, 300)
    assert forecast_of(epochs=2, crop=0.5).training == 100 * 2 * 3 / 4
    assert forecast_of(epochs=2, crop=1.0, bottleneck_epochs=5).training == 100 * (2 * 3 + 1)
    assert forecast_of(loss="none").training == 0
    assert forecast_of(mirrored=True, scales=[1.0, 2.0]).embedding == 300 * (1 + 4) * 2


def test_disk_follows_weights_and_embeddings():
    frozen = forecast_of(loss="none").disk
    assert forecast_of(loss="none", scales=[1.0, 2.0], scale_pooling="side_by_side").disk - frozen == 2 * 300 * 8
    whitened = forecast_of(loss="none", whitening="pca", dimensions=3).disk
    assert whitened - frozen == 2 * (300 * 3 + 100 * 8 - 300 * 8)  # 8 numbers a photo, of train photos before too
    weights = (frozen - 2 * 300 * 8) / 4
    assert forecast_of().disk - frozen == 4 * (6 * weights + 7 * 10 * 8)  # two checkpoints with two moments each
    assert forecast_of(loss="arcface", subcentres=3).disk - frozen == 4 * (6 * weights + 7 * 30 * 8)
