import io

import keras
import numpy as np
import pytest
import tiny  # noqa: F401
from PIL import Image
from scripts import PLAIN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import model as models
from generators import Batches
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.random_access import RandomAccess
from landmarks.networks.layers import unit
from landmarks.running import command
from landmarks.running.command import InputError, Stopped
from landmarks.running.recipe import load
from landmarks.training import run as training
from landmarks.training import triplets
from landmarks.training.step import Steps

LANDMARKS = np.array([10, 20, 30])


def settings(mirror, work, *more):
    return load(
        [
            f"--mirror={mirror}", f"--work={work}", *PLAIN, "--backbone=Tiny", "--weights=none", "--image-size=32",
            "--crop=1", "--loss=triplet", "--embedding-size=8", "--classes-per-batch=2", "--photos-per-class=3",
            "--subspaces=2", "--optimizer=sgd", "--learning-rate=1e-4", "--accumulate=2", "--epochs=2",
            "--validation-shards=1", *more,
        ]
    )  # fmt: skip


def train(recipe):
    mirror = open_mirror(recipe.source.mirror)
    return training.train(recipe.run, recipe.model, recipe.training, mirror, mirror.train(), LANDMARKS)


def test_a_stopped_epoch_goes_on_to_the_same_weights(tiny_mirror, tmp_path, monkeypatch):
    whole = train(settings(tiny_mirror, tmp_path / "whole"))
    recipe = settings(tiny_mirror, tmp_path / "stopped")
    steps = iter(range(1, 100))
    train_step = Steps.__call__

    def stop_at_the_third(*arguments):
        if next(steps) == 3:  # in the middle of an epoch, and between the two steps of an accumulated one
            command.stop_event.set()
        return train_step(*arguments)

    monkeypatch.setattr(Steps, "__call__", stop_at_the_third)
    with pytest.raises(Stopped):
        train(recipe)
    command.stop_event.clear()
    resumed = train(recipe)
    assert next(steps) > 6
    for expected, found in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_accumulated_gradients_change_the_weights_every_second_step(tiny_mirror, tmp_path):
    recipe = settings(tiny_mirror, tmp_path)
    mirror = open_mirror(recipe.source.mirror)
    table = mirror.train().set_index("id")["landmark_id"]
    classes = (table // 10 - 1).sort_index()
    trainer = training.Trainer(recipe.run, recipe.model, recipe.training, classes, total=1)
    photos = RandomAccess(mirror, "train", mirror.shard_names("train"), classes.index, 32)
    ids = [identity for landmark in (0, 1) for identity in classes.index[classes == landmark][:3]]
    (_, images), = Batches(photos, ids, 32, 6)  # fmt: skip
    kernel = trainer.model.get_layer("projection").kernel
    before = keras.ops.convert_to_numpy(kernel).copy()
    taken = Steps(trainer.model)
    taken(images, classes[ids].to_numpy(), None, 1e-3)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), before)
    taken(images, classes[ids].to_numpy(), None, 1e-3)
    taken.finish()
    assert (keras.ops.convert_to_numpy(kernel) != before).any()


def test_class_centres_are_mean_embeddings_before_the_dense_layer(tiny_mirror, tmp_path, monkeypatch):
    recipe = settings(tiny_mirror, tmp_path)
    mirror = open_mirror(recipe.source.mirror)
    model = models.build_model(3, recipe.model, recipe.training.seed)
    table = mirror.train()
    photos = RandomAccess(mirror, "train", mirror.shard_names("train"), table["id"], 32)
    by_class = [group.tolist()[:3] for _, group in table.groupby("landmark_id")["id"]]
    monkeypatch.setattr(triplets, "CLASSES_A_FILE", 2)
    pooled = keras.Model(model.input, model.get_layer("pooling").output)
    embed = keras.Model(model.input, {"embedding": unit(pooled.output)})
    centres = triplets.class_centres(embed, photos, by_class, tmp_path / "centres", image_size=32, batch_size=4)

    for ids, centre in zip(by_class, centres, strict=True):
        (_, images), = Batches(photos, ids, 32, 3)  # fmt: skip
        embeddings = pooled.predict_on_batch(images)
        mean = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).sum(axis=0)
        np.testing.assert_allclose(centre, mean / np.linalg.norm(mean), atol=2e-4)  # values near 0.03

    assert len(list((tmp_path / "centres").iterdir())) == 2
    monkeypatch.setattr(triplets, "Batches", None)  # which another run has no need of
    again = triplets.class_centres(embed, photos, by_class, tmp_path / "centres", image_size=32, batch_size=4)
    np.testing.assert_array_equal(again, centres)


def test_a_batch_is_shown_in_tensorboard_a_row_for_each_landmark(tiny_mirror, tmp_path):
    recipe = settings(tiny_mirror, tmp_path)
    photos = np.zeros((6, 32, 32, 3), "uint8")
    photos[3:] = 200  # the second landmark
    triplets.log_batch(tmp_path, photos, recipe.training.photos_per_class, 7)
    logs = EventAccumulator(str(tmp_path / "logs"))
    logs.Reload()
    (event,) = logs.Images("batch")
    sheet = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert event.step == 7 and sheet.shape == (2 * 32, 3 * 32, 3)
    assert sheet[:30].max() < 20 and sheet[34:].min() > 180


def test_a_mirror_at_a_url_is_refused_with_what_to_type_before_anything_is_asked_of_it(serve, tiny_mirror, tmp_path):
    server = serve(tiny_mirror)
    with pytest.raises(InputError, match=f"python mirror.py shrink {server.url} OUT --size 32"):
        settings(server.url, tmp_path)
    assert server.requests == []
