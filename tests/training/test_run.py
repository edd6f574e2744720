import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny  # noqa: F401  the backbone
from conftest import recipe_with

from landmarks.mirrors.open import open_mirror
from landmarks.running.command import InputError
from landmarks.running.recipe import load
from landmarks.training import run as training


@pytest.fixture
def recipe(tiny_mirror, tmp_path):
    return load(
        [
            f"--mirror={tiny_mirror}", f"--work={tmp_path}", "--backbone=MobileNet", "--weights=none",
            "--image-size=32", "--crop=1", "--batch-size=3", "--epochs=1",
        ]
    )  # fmt: skip


class Model:
    """Stands in for the network: notes what it is trained on, and may be told to fail."""

    def __init__(self, losses=()):
        self.seen, self.losses = [], list(losses)
        self.optimizer = self
        self.learning_rate = self
        self.rates = []

    def assign(self, rate):
        self.rates.append(rate)

    def reset_metrics(self):
        pass

    def train_on_batch(self, photos, targets, weights, return_dict):
        self.seen += zip(photos[:, 0, 0, 0].tolist(), targets.tolist(), strict=True)
        self.weights = weights
        return {"loss": self.losses.pop(0) if self.losses else 1.0, "accuracy": 0.5}


class Shard:
    name = "images_000"
    refused: list[tuple[str, str]] = []

    def __init__(self, ids):
        self.ids = ids


@pytest.fixture
def run(recipe, monkeypatch):
    """A `Trainer` with a stand-in model, on stand-in photos whose first pixel is the number in their id."""
    monkeypatch.setattr(training.models, "build_model", lambda *_, **__: Model())
    monkeypatch.setattr(Model, "compile", lambda *_, **__: None, raising=False)

    class Batches:
        def __init__(self, shard, ids, size, batch_size, first):
            self.parts = [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)][first:]
            self.unreadable = []

        def __len__(self):
            return len(self.parts)

        def __iter__(self):
            for part in self.parts:
                yield part, np.array([int(photo) for photo in part]).reshape(-1, 1, 1, 1)

    monkeypatch.setattr(training, "Batches", Batches)
    return training.Trainer(recipe.run, recipe.model, recipe.training, CLASSES, total=4)


CLASSES = pd.Series({f"{number}": number % 2 for number in range(8)})


IDS = [f"{number}" for number in (3, 1, 4, 0, 5, 2, 6, 7, 3)]


SHARD = Shard([f"{number}" for number in range(10)])  # 8 and 9 have no class


def test_a_mini_epoch_trains_on_its_photos_with_a_falling_rate(run):
    row = run.mini_epoch(SHARD, IDS)
    assert [int(photo) for photo, _ in run.model.seen] == [int(photo) for photo in IDS]
    assert set(run.model.seen) == {(number, number % 2) for number in range(8)}
    assert row["photos"] == 9
    assert (row["loss"], row["accuracy"]) == (1.0, 0.5)
    assert run.model.rates == sorted(run.model.rates, reverse=True)


def test_every_step_has_one_shape_where_photos_cannot_be_read(run, monkeypatch):
    whole = training.Batches.__iter__
    monkeypatch.setattr(
        training.Batches, "__iter__", lambda self: ((ids[:-1], photos[:-1]) for ids, photos in whole(self))
    )
    run.mini_epoch(SHARD, IDS)
    assert [int(photo) for photo, _ in run.model.seen] == [3, 1, 3, 0, 5, 0, 6, 7, 6]
    assert set(run.model.seen) <= {(number, number % 2) for number in range(8)}


def test_a_resumed_mini_epoch_sees_the_rest_alone(run, recipe, monkeypatch):
    run.mini_epoch(SHARD, IDS)
    again = training.Trainer(recipe.run, recipe.model, recipe.training, CLASSES, total=4)
    again.step = 1
    again.mini_epoch(SHARD, IDS)
    assert again.model.seen == run.model.seen[3:]


def test_a_shard_without_a_class_is_passed_over(run):
    assert run.mini_epoch(Shard(["8", "9"]), [])["photos"] == 0
    assert run.model.seen == []


def test_a_diverged_loss_is_one_clear_line(run):
    run.model.losses = [1.0, math.nan]
    with pytest.raises(InputError, match="loss is nan in mini-epoch 1, step 2.*--learning-rate"):
        run.mini_epoch(SHARD, IDS)


def test_arcface_gets_the_margin_of_each_class_and_weights_on_request(run, recipe):
    classes = pd.Series({"0": 0, "1": 1, "2": 1, "3": 1})  # one photo of class 0, three of class 1
    settings = {"loss": "arcface", "margin_smallest": 0.1, "margin_largest": 0.4, "class_weights": True}
    recipe = recipe_with(recipe, **settings)
    run = training.Trainer(recipe.run, recipe.model, recipe.training, classes, total=4)
    run.mini_epoch(SHARD, ["0", "1"])
    assert run.model.seen[:2] == [(0, [0, pytest.approx(0.4)]), (1, [1, pytest.approx(0.1)])]
    rare, frequent, _ = run.model.weights
    assert rare / frequent == pytest.approx(math.log(4) / math.log(2))
    assert (rare + 3 * frequent) / 4 == pytest.approx(1)


def test_the_best_mini_epoch_is_kept(run, recipe, monkeypatch):
    saved = []
    monkeypatch.setattr(training.models, "save", lambda _, path: saved.append((path.name, run.history[-1:])))
    monkeypatch.setattr(run, "save", lambda: None)
    run.training = recipe_with(recipe, keep_best=True).training
    for number, gap in enumerate([0.5, 0.7, 0.6, 0.7]):
        run.finish_mini_epoch({"mini_epoch": number, "nearest_photo_gap": gap})
    assert saved == [("best.keras", []), ("best.keras", [{"mini_epoch": 0, "nearest_photo_gap": 0.5}])]


def test_without_a_pair_held_out_the_last_model_is_kept(run, recipe, monkeypatch):
    monkeypatch.setattr(run, "save", lambda: None)
    run.training = recipe_with(recipe, keep_best=True).training
    run.finish_mini_epoch({"mini_epoch": 1, "validation_gap": 0.5})
    assert len(run.history) == 1 and not run.best.exists()


def small_training(tiny_mirror, work, **settings):
    recipe = recipe_with(
        mirror=str(tiny_mirror), work=work, backbone="Tiny", weights="none", image_size=32, crop=1, batch_size=8,
        epochs=1, **settings,
    )  # fmt: skip
    mirror = open_mirror(recipe.source.mirror)
    return training.train(recipe.run, recipe.model, recipe.training, mirror, mirror.train(), np.array([10, 20, 30]))


def test_of_a_mirror_with_few_shards_photos_are_held_out(tiny_mirror, tmp_path, capsys, monkeypatch):
    streamed, stream = [], training.stream
    monkeypatch.setattr(training, "stream", lambda *taken: streamed.append(taken[3]) or stream(*taken))
    small_training(tiny_mirror, tmp_path, validation_shards=6)
    assert "6 train shards, too few to hold out 6: 3 photos are held out instead" in capsys.readouterr().out
    history = pd.read_csv(tmp_path / "training.csv")
    assert len(streamed[0]) == 21  # of 24, 8 a landmark, every fifth is held out
    assert history["nearest_photo_gap"].isna().all() if "nearest_photo_gap" in history else True
    assert history["validation_gap"].between(0, 1).all()


def test_a_work_folder_goes_on_with_the_same_photos_alone(tiny_mirror, tmp_path):
    small_training(tiny_mirror, tmp_path / "work")
    shutil.copytree(tiny_mirror, tmp_path / "elsewhere")
    small_training(tmp_path / "elsewhere", tmp_path / "work")
    table = pd.read_csv(tmp_path / "elsewhere/metadata/train.csv")
    table["landmark_id"] = table["landmark_id"].to_numpy()[::-1]
    table.to_csv(tmp_path / "elsewhere/metadata/train.csv", index=False)
    with pytest.raises(InputError, match="was begun on other train photos or landmarks"):
        small_training(tmp_path / "elsewhere", tmp_path / "work")


def test_a_spoilt_checkpoint_costs_one_mini_epoch(tiny_mirror, tmp_path, capsys):
    whole = small_training(tiny_mirror, tmp_path / "whole").get_weights()
    small_training(tiny_mirror, tmp_path / "spoilt")
    assert {path.name for path in (tmp_path / "spoilt").glob("*.keras")} == set(training.CHECKPOINTS)
    for fault in ("cut", "gone"):
        path = tmp_path / "spoilt" / training.CHECKPOINTS[0]
        path.write_bytes(path.read_bytes()[:2000]) if fault == "cut" else path.unlink()
        again = small_training(tiny_mirror, tmp_path / "spoilt").get_weights()
        assert "going on after mini-epoch 4 of 5" in capsys.readouterr().out
        for ours, theirs in zip(again, whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for name in training.CHECKPOINTS:
        (tmp_path / "spoilt" / name).write_bytes(b"spoilt")
    with pytest.raises(InputError, match="checkpoint-before.keras cannot be gone on from"):
        small_training(tiny_mirror, tmp_path / "spoilt")


def test_a_checkpoint_that_finds_no_room_is_one_clear_line(run, monkeypatch, tmp_path):
    run.checkpoint.write_bytes(bytes(1000))
    run.previous.write_bytes(bytes(1000))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=999))
    run.model.optimizer.built = True
    with pytest.raises(InputError, match="no space left on the disk: a checkpoint takes .* free some"):
        run.save()
    assert run.checkpoint.exists() and not run.previous.exists()  # which made room
