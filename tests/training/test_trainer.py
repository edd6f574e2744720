import errno
import math
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import recipe_with

from landmarks.running.command import InputError, Stopped
from landmarks.running.recipe import load
from landmarks.training import trainer as training


@pytest.fixture
def recipe(tiny_mirror, tmp_path):
    return load(
        [
            "--recipe=small", f"--mirror={tiny_mirror}", f"--work={tmp_path}", "--backbone=MobileNet", "--weights=none",
            "--image-size=32", "--crop=1", "--batch-size=3", "--epochs=1", "--checkpoint-minutes=0",
        ]
    )  # fmt: skip


class Model:
    """Stands in for the network: notes what it is trained on, and may be told to fail."""

    variables: list = []

    def __init__(self, losses=()):
        self.seen, self.losses = [], list(losses)
        self.optimizer = self
        self.learning_rate = self
        self.rates = []

    def assign(self, rate):
        self.rates.append(rate)

    def reset_metrics(self):
        self.found = []

    def train_function(self, batches):
        ((photos, targets, weights),) = batches
        self.seen += zip(np.asarray(photos)[:, 0, 0, 0].tolist(), np.asarray(targets).tolist(), strict=True)
        self.weights = None if weights is None else np.asarray(weights)
        self.found.append(self.losses.pop(0) if self.losses else 1.0)
        return {"loss": np.mean(self.found), "accuracy": 0.5}


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


def test_a_host_with_fewer_photos_takes_as_many_steps_and_its_last_photos_count_nothing(run, monkeypatch):
    monkeypatch.setattr(training.hosts, "count", 2)
    monkeypatch.setattr(training.hosts, "of_all", lambda value: np.array([value, 7 * (value is not False)]))
    monkeypatch.setattr(training, "placing", lambda: lambda array, rows: np.asarray(array))
    run.batch_size, weights = 4, []  # two photos of each host
    whole = run.model.train_function
    run.model.train_function = lambda batches: (weights.extend(batches[0][2].tolist()), whole(batches))[1]
    row = run.mini_epoch(SHARD, ["3", "1", "4"])
    assert [int(photo) for photo, _ in run.model.seen] == [3, 1, 4, 4, 4, 4, 4, 4]
    assert weights == [1, 1, 1, 1, 0, 0, 0, 0]
    assert (row["mini_epoch"], row["photos"], row["shard"]) == (2, 3 + 7, "images_000")
    monkeypatch.setattr(run, "save", lambda: None)
    run.finish_mini_epoch(row)
    run.model.seen, weights[:] = [], []
    monkeypatch.setattr(training.hosts, "of_all", lambda value: np.array([value, 2 * (value is not False)]))
    run.mini_epoch(SHARD, [])  # a round in which this host has no photo
    assert weights == [0, 0] and len(run.model.seen) == 2


def test_a_shard_without_a_class_is_passed_over(run):
    assert run.mini_epoch(Shard(["8", "9"]), [])["photos"] == 0
    assert run.model.seen == []


@pytest.mark.parametrize(("steps_a_reading", "known"), [(1, 2), (16, 3)])
def test_a_diverged_loss_is_one_clear_line(run, monkeypatch, steps_a_reading, known):
    monkeypatch.setattr(training, "STEPS_A_READING", steps_a_reading)
    run.model.losses = [1.0, math.nan]
    with pytest.raises(InputError, match=f"loss is nan in mini-epoch 1, by step {known}.*--learning-rate"):
        run.mini_epoch(SHARD, IDS)


def test_a_run_that_is_asked_to_end_saves_no_diverged_model(run, monkeypatch):
    def stop_after_two_steps(step):
        if step == 2:
            raise Stopped("asked to end")

    run.model.losses = [1.0, math.nan]
    monkeypatch.setattr(training.hosts, "check_stop", stop_after_two_steps)
    with pytest.raises(InputError, match="loss is nan"):
        run.mini_epoch(SHARD, IDS)


def test_a_checkpoint_that_is_due_holds_no_diverged_model(run, monkeypatch):
    run.run = run.run.model_copy(update={"checkpoint_minutes": 1e-9})
    saved = []
    monkeypatch.setattr(run, "save", lambda: saved.append(run.step))
    run.model.losses = [1.0, math.nan]
    with pytest.raises(InputError, match="loss is nan"):
        run.mini_epoch(SHARD, IDS)
    assert saved == [1]


@pytest.mark.parametrize(("minutes", "after"), [(0, [1, 2, 3, 4]), (60, [4])])
def test_between_mini_epochs_a_checkpoint_waits_for_its_time_but_for_the_last(run, monkeypatch, minutes, after):
    run.run = run.run.model_copy(update={"checkpoint_minutes": minutes})
    saved = []
    monkeypatch.setattr(run, "save", lambda: saved.append(run.done))
    for number in range(1, run.total + 1):
        run.finish_mini_epoch({"mini_epoch": number})
    assert run.total == 4 and saved == after


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


def test_a_checkpoint_that_finds_no_room_is_one_clear_line(run, monkeypatch, tmp_path):
    run.checkpoint.write_bytes(bytes(1000))
    run.previous.write_bytes(bytes(1000))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=999))
    run.model.optimizer.built = True
    with pytest.raises(InputError, match="no space left on the disk: a checkpoint takes .* free some"):
        run.save()
    assert run.checkpoint.exists() and not run.previous.exists()  # which made room


def test_a_checkpoint_that_cannot_be_opened_again_is_none(run, monkeypatch):
    """zipfile begins a file anew where it cannot open it to add to it: what training stood at would be all of it."""

    def save(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")

    def fails(path, mode="r", *arguments, **options):
        if mode == "r+b":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return whole(path, mode, *arguments, **options)

    whole = open
    run.model.save, run.model.variables, run.model.optimizer.built = save, [], True
    for place in ("io.open", "builtins.open"):
        monkeypatch.setattr(place, fails)
    with pytest.raises(OSError, match="Input/output error"):
        run.save()
    assert not run.checkpoint.exists()
