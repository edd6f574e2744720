import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import recipe_with

from landmarks.mirrors.open import open_mirror
from landmarks.running.command import InputError
from landmarks.running.recipe import load
from landmarks.running.settings import TrainingSettings
from landmarks.training import run as training
from landmarks.training import schedule
from landmarks.training.schedule import learning_rate
from landmarks.training.selection import select_classes
from landmarks.training.validation import hold_out

TABLE = pd.DataFrame({"landmark_id": [7] * 20 + [3] * 19 + [138982] * 50 + [5] * 25})


def test_classes_are_the_frequent_landmarks_less_the_excluded():
    assert select_classes(TABLE, 20, [138982]).tolist() == [5, 7]
    assert select_classes(TABLE, 19, []).tolist() == [3, 5, 7, 138982]


@pytest.mark.parametrize("min_images", [26, 51])
def test_too_few_classes(min_images):
    with pytest.raises(InputError, match="lower --min-images"):
        select_classes(TABLE, min_images, [])


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
        mirror=str(tiny_mirror), work=work, backbone="MobileNet", weights="none", image_size=32, crop=1, batch_size=8,
        epochs=1, **settings,
    )  # fmt: skip
    mirror = open_mirror(recipe.source.mirror)
    return training.train(recipe.run, recipe.model, recipe.training, mirror, mirror.train(), np.array([10, 20, 30]))


def test_of_a_mirror_with_few_shards_photos_are_held_out(tiny_mirror, tmp_path, capsys):
    small_training(tiny_mirror, tmp_path, validation_shards=6)
    assert "6 train shards, too few to hold out 6: 3 photos are held out instead" in capsys.readouterr().out
    history = pd.read_csv(tmp_path / "training.csv")
    assert history["photos"].sum() == 21  # of 24, 8 a landmark, every fifth is held out
    assert history["nearest_photo_gap"].isna().all() if "nearest_photo_gap" in history else True
    assert history["validation_gap"].between(0, 1).all()


def test_photos_are_held_out_evenly():
    classes = pd.Series(np.repeat([0, 1, 2], [4, 5, 26]), index=[f"{number}" for number in range(35)])
    held = hold_out(classes, seed=1)
    assert held.value_counts().to_dict() == {1: 1, 2: 5}
    pd.testing.assert_series_equal(held, hold_out(classes, seed=1))
    assert set(held.index) != set(hold_out(classes, seed=2).index)


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
