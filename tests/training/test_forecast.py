import itertools

import pytest
import tiny  # noqa: F401  the backbone
from conftest import recipe_with

from landmarks.training import forecast as forecasts
from landmarks.training.forecast import forecast


@pytest.fixture(autouse=True)
def a_second_a_photo(monkeypatch):
    ticks = itertools.count(0, 4 * forecasts.BATCHES)
    monkeypatch.setattr(forecasts.time, "perf_counter", lambda: next(ticks))


def forecast_of(shards=5, beside=False, has_accelerator=True, **settings):
    plain = {
        "backbone": "Tiny", "weights": "none", "image_size": 32, "batch_size": 4, "mirrored": False,
        "validation_shards": 0,
    }  # fmt: skip
    recipe = recipe_with(**{**plain, **settings})
    found = forecasts.needs(
        recipe.model, recipe.training, recipe.embedding, chosen=100, classes=10, seen=300, shards=shards,
        beside=beside, has_accelerator=has_accelerator,
    )  # fmt: skip
    return forecast(found, 300, recipe.model.image_size, recipe.training.batch_size, recipe.embedding.engine)


def test_time_follows_epochs_crops_scales_and_views():
    plain = forecast_of(epochs=2, crop=1.0)
    assert (plain.training, plain.embedding) == (100 * 2 * 3, 300)
    assert forecast_of(epochs=2, crop=0.5).training == 100 * 2 * 3 / 4
    assert forecast_of(epochs=2, crop=1.0, bottleneck_epochs=5).training == 100 * (2 * 3 + 1)
    assert forecast_of(loss="none").training == 0
    assert forecast_of(mirrored=True, scales=[1.0, 2.0]).embedding == 300 * (1 + 4) * 2


def test_a_processor_takes_longer_to_train():
    on_accelerator = forecast_of(validation_shards=1).training
    on_processor = forecast_of(validation_shards=1, has_accelerator=False).training
    assert 1.3 * on_accelerator < on_processor < 1.5 * on_accelerator


def test_held_out_photos_are_not_learnt_but_looked_at_after_each_mini_epoch():
    held_out = {"epochs": 2, "crop": 1.0, "compare_start": False}
    assert forecast_of(validation_shards=1, **held_out).training == pytest.approx(80 * 2 * 3 + 2 * 4 * 20)
    assert forecast_of(1, validation_shards=1, **held_out).training == pytest.approx(80 * 2 * 3 + 2 * 1 * 20)
    by_triplets = forecast_of(validation_shards=1, loss="triplet", **held_out).training
    assert by_triplets == pytest.approx(80 * 2 * 3 + 2 * 20)


def test_to_be_compared_with_the_first_weights_takes_passes():
    """Random ones, as those of the other tests, are not compared with."""
    given = {"weights": "weights.keras", "validation_shards": 1}
    alone = forecast_of(compare_start=False, **given).training
    assert forecast_of(beside=True, **given).training == alone
    assert forecast_of(**given).training - alone == pytest.approx(80 + 2 * 20)
    whitened = forecast_of(whitening="lda", **given).training
    assert whitened - alone == pytest.approx(2 * 80 + 2 * 20)


def test_disk_follows_weights_and_embeddings():
    frozen = forecast_of(loss="none").disk
    assert forecast_of(loss="none", scales=[1.0, 2.0], scale_pooling="side_by_side").disk - frozen == 2 * 300 * 8
    both = forecast_of(loss="none", scales=[1.0, 2.0], scale_pooling="side_by_side", inner_layers=["conv"]).disk
    assert both - frozen == 2 * 300 * (4 * 8 - 8)  # 8 channels of the inner map, at each scale
    whitened = forecast_of(loss="none", whitening="pca", dimensions=3).disk
    assert whitened - frozen == 2 * (300 * 3 + 100 * 8 - 300 * 8)  # 8 numbers a photo, of train photos before too
    weights = (frozen - 2 * 300 * 8) / 4
    assert forecast_of().disk - frozen == 4 * (6 * weights + 7 * 10 * 8)  # two checkpoints with two moments each
    assert forecast_of(loss="arcface", subcentres=3).disk - frozen == 4 * (6 * weights + 7 * 30 * 8)
