from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny  # noqa: F401  the backbone
from conftest import make_mirror, recipe_with

import model as models
from generators import Batches
from landmarks.mirrors.open import open_mirror
from landmarks.networks import whitening as whitenings
from landmarks.running import command
from landmarks.running.command import Stopped
from landmarks.running.settings import ModelSettings
from landmarks.training import run as training
from landmarks.training import start
from landmarks.training.run import train


class Validation(SimpleNamespace):
    """A model stands for the embeddings that it makes."""

    def embeddings(self, model):
        return model


@pytest.fixture
def held_out():
    """20 photos of 5 landmarks, and embeddings of them that tell the landmarks apart, more or less or not at all."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(5), 4)

    def embedding(noise):
        found = np.eye(5)[classes] + noise * rng.standard_normal((20, 5))
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return Validation(classes=classes), embedding(0.01), embedding(3)


def test_the_better_one_is_kept_and_the_gain_is_said(held_out, capsys):
    validation, good, bad = held_out
    assert start.better(good, bad, validation, True) is good
    said = capsys.readouterr().out
    assert "20 held-out photos find each other with a mean average precision of 1.000" in said
    worse = np.mean(whitenings.average_precisions(bad, validation.classes))
    assert f"whitened, {worse:.3f}: {1 - worse:+.3f} ± " in said and "training paid" in said
    assert start.better(bad, good, validation, True) is good
    assert "training did not pay: the first weights, whitened, are kept" in capsys.readouterr().out
    other = bad.copy()
    assert start.better(other, bad, validation, True, after=lambda _: good) is other  # whitened too, it is good
    assert "training paid" in capsys.readouterr().out
    assert start.better(bad, good, validation, False) is bad
    assert "training did not pay; --loss none" in capsys.readouterr().out


def test_a_handful_of_photos_tells_nothing():
    assert start.can_tell(np.repeat(np.arange(10), 2))
    assert not start.can_tell(np.concatenate([np.repeat(np.arange(9), 2), np.arange(9, 30)]))  # 18, and 21 alone
    assert not start.can_tell(np.array([], int))


@pytest.mark.parametrize(("gained", "verdict"), [(1, "no more than chance may give"), (10, "training paid")])
def test_a_gain_is_held_against_its_standard_error(held_out, capsys, monkeypatch, gained, verdict):
    """By 0.5 in one photo of 20 it is one standard error, in 10 of them 4.4."""
    precisions = iter([[1.0] * gained + [0.5] * (20 - gained), [0.5] * 20])
    monkeypatch.setattr(whitenings, "average_precisions", lambda *_: next(precisions))
    validation, good, bad = held_out
    assert start.better(bad, good, validation, True) is bad
    assert verdict in capsys.readouterr().out


def first_weights(tmp_path):
    path = tmp_path / "first.keras"
    models.save(models.build_model(3, ModelSettings(backbone="Tiny", weights="none", crop=1.0)), path)
    return path


def settings(tmp_path, **others):
    return recipe_with(
        backbone="Tiny", weights=str(first_weights(tmp_path)), image_size=32, crop=1.0, batch_size=8, epochs=1,
        mirrored=False, work=tmp_path / "work", validation_shards=1, **others,
    )  # fmt: skip


def test_the_dense_layer_is_the_whitening(tiny_mirror, tmp_path):
    recipe, mirror = settings(tmp_path), open_mirror(str(tiny_mirror), tmp_path)
    photos = mirror.train()
    classes = pd.Series(np.unique(photos["landmark_id"], return_inverse=True)[1], index=photos["id"])
    names = mirror.shard_names("train")[:4]
    model = start.whitened(recipe.model, recipe.training, mirror, names, classes)
    path = tmp_path / "start.keras"
    models.save(model, path)
    predictor = models.predictor(models.load(path))
    plain = models.predictor(models.load(tmp_path / "first.keras"))
    before, after, labels = [], [], []
    for shard in mirror.stream("train", names):
        for ids, batch in Batches(shard, shard.ids, 32, 8):
            before.append(models.predict(plain, batch, 8)["embedding"])
            after.append(models.predict(predictor, batch, 8)["embedding"])
            labels += classes[ids].tolist()
    before, labels = np.concatenate(before), np.array(labels)
    shrinkage = whitenings.choose_shrinkage("lda", before, labels, 0)
    whitening = next(whitenings.fit("lda", before, labels, [shrinkage], 0))
    np.testing.assert_allclose(np.concatenate(after), whitening(before), atol=1e-4)


def test_a_training_that_spoils_the_net_keeps_its_start(tmp_path, monkeypatch, capsys):
    mirror = open_mirror(str(make_mirror(tmp_path / "mirror", landmarks=3, train=40)), tmp_path)
    recipe, photos = settings(tmp_path), mirror.train()
    landmarks = np.unique(photos["landmark_id"])
    given = recipe.run, recipe.model, recipe.training, mirror, photos, landmarks
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(start, "FEWEST", 3)

    def spoilt(self, model):
        unspoilt = embeddings(self, model)
        return np.ones_like(unspoilt) if any(layer.name == "landmark" for layer in model.layers) else unspoilt

    embeddings = training.Validation.embeddings
    monkeypatch.setattr(training.Validation, "embeddings", spoilt)
    kept = train(*given)
    assert "training did not pay: the first weights, whitened, are kept" in capsys.readouterr().out
    assert not any(layer.name == "landmark" for layer in kept.layers)
    assert any(layer.name == "landmark" for layer in train(*given, needs_head=True).layers)
    assert "training did not pay; --loss none" in capsys.readouterr().out
    monkeypatch.setattr(start, "FEWEST", 1000)
    train(*given)
    assert "not held against its first weights: " in capsys.readouterr().out
    command.stop_event.set()
    with pytest.raises(Stopped):
        start.whitened(*given[1:4], mirror.shard_names("train"), pd.Series(0, index=photos["id"]))
