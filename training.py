"""The mini-epochs in a row: schedule, checkpoint, resume, validation."""

import json
import math
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import pandas as pd
from keras import ops
from tensorboard.summary import Writer
from tqdm import tqdm

import model as models
import transfer
import triplets
from command import InputError, Stopped, check_stop
from files import whole
from generators import Batches, record_skipped, shuffled
from losses import ArcFace, BatchHardTriplet, SmoothedCrossentropy, arcface_accuracy, class_margins
from mirror import Mirror
from random_access import RandomAccess
from settings import Recipe
from shards import FolderShard, TarShard
from validation import Validation

BEST = "nearest_photo_gap"  # what `keep_best` goes by


def select_classes(train: pd.DataFrame, min_images: int, exclude: list[int]) -> np.ndarray:
    """The landmark ids to learn, ascending: (classes,) int64. A landmark's place is its class.

    Raises InputError if there are fewer than two.
    """
    counts = train["landmark_id"].value_counts()
    landmarks = np.sort(counts.index[(counts >= min_images) & ~counts.index.isin(exclude)].to_numpy())
    if len(landmarks) < 2:
        raise InputError(
            f"{len(landmarks)} of {len(counts)} landmarks have {min_images} train photos or more; "
            "training needs two at least: lower --min-images"
        )
    return landmarks


def train(recipe: Recipe, mirror: Mirror, photos: pd.DataFrame, landmarks: np.ndarray) -> keras.Model:
    """Train on the mirror's train shards, from the checkpoint in the work folder if there is one.

    A mini-epoch is one shard; with triplets it is one pass over all photos, in batches of similar landmarks.
    The last `validation_shards` shards are held out. Photos that are not in `photos` (`id`, `landmark_id`), or whose
    landmark is not in `landmarks` (classes,), are passed over. With `bottleneck_epochs` the top learns before, so that
    no backbone is trained under a random top.

    Raises:
        InputError: too few shards, the checkpoint does not load, or triplets are to be drawn from a mirror at a URL.
        Stopped: this run is asked to end; a checkpoint is written first.
    """
    names = mirror.shard_names("train")
    held_out = names[max(len(names) - recipe.validation_shards, 0) :]
    names = names[: len(names) - len(held_out)]
    if not names:
        raise InputError(
            f"{mirror.name} has {len(held_out)} train shards; --validation-shards {recipe.validation_shards} "
            "leaves none to train on"
        )
    photos = photos[photos["landmark_id"].isin(landmarks)]
    classes = pd.Series(np.searchsorted(landmarks, photos["landmark_id"]), index=photos["id"])

    draw = triplets.mini_epochs if recipe.loss == "triplet" else stream
    run = Run(recipe, classes, total=recipe.epochs * (1 if recipe.loss == "triplet" else len(names)))
    validation = Validation(recipe, mirror, held_out, classes)
    if recipe.keep_best and not validation.is_query.any():
        held_out_photos = len(validation.classes)
        print(f"no landmark has two of the {held_out_photos} held-out photos: the last model is kept, not the best")
    if recipe.bottleneck_epochs:
        if not run.checkpoint.exists():
            _train_top(recipe, mirror, names, classes, run.model)
            run.save()  # which tells that this stage is done
            scores = validation.scores(run.model)
            print("the top is trained:", ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
        transfer.clear(recipe)
    run.train(draw(recipe, mirror, names, classes, run.model, len(run.history)), validation.scores)
    return models.load(run.best) if run.best.exists() else run.model


def _train_top(recipe: Recipe, mirror: Mirror, names: list[str], classes: pd.Series, model: keras.Model) -> None:
    backbone, top = transfer.divide(recipe, model)
    transfer.write_features(recipe, mirror, names, classes, backbone)
    stage = transfer.stage(recipe)
    run = Run(stage, classes, stage.epochs * len(names), top, transfer.FeatureBatches)
    shards = transfer.FeatureShards(stage.work, backbone.output["features"].shape[1:])
    run.train(stream(stage, shards, names, classes, top, len(run.history)), lambda _: {})
    top.set_weights(run.model.get_weights())


def stream(
    recipe: Recipe, mirror: Mirror, names: list[str], classes: pd.Series, _model: keras.Model, done: int
) -> Iterator[tuple[TarShard | FolderShard, list[str]]]:
    """Shard after shard and, in the order of training, its photos that have a class; the first `done` are left out."""
    order = [names[i] for epoch in range(recipe.epochs) for i in shuffled(len(names), recipe.seed, epoch)]
    for number, shard in enumerate(mirror.stream("train", order[done:]), done):
        ids = [identity for identity in shard.ids if identity in classes.index]
        ids = [ids[i] for i in shuffled(len(ids), recipe.seed, number)]
        # Filled up with the first photos, so that every batch has one shape: JAX compiles anew for each.
        steps = -(-len(ids) // recipe.batch_size)
        yield shard, np.resize(ids, steps * recipe.batch_size).tolist() if ids else []


def learning_rate(recipe: Recipe, mini_epochs: float, total: int) -> float:
    """The learning rate after so many mini-epochs of `total`; a fraction counts the steps of the one in hand.

    After the linear warm-up, cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    if mini_epochs < recipe.warm_up:
        return recipe.learning_rate * mini_epochs / recipe.warm_up
    if recipe.schedule == "cosine":
        part = (mini_epochs - recipe.warm_up) / (total - recipe.warm_up)
        return recipe.learning_rate * (1 + math.cos(math.pi * part)) / 2
    steps = {round(step * total) if step < 1 else step: rate for step, rate in recipe.learning_rate_steps.items()}
    reached = [step for step in steps if step <= mini_epochs]
    return steps[max(reached)] if reached else recipe.learning_rate


class Run:
    """The model, its optimizer, and where training stands; all of it is in the checkpoint, one file.

    The order of shards and photos follows from the seed and the mini-epoch's number alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        classes: pd.Series,
        total: int,
        model: keras.Model | None = None,
        batches: type[Batches] | None = None,
    ):
        """`model` and what it takes in `batches`: the whole one and photos, unless they are given."""
        self.recipe = recipe
        self.classes = classes
        self.batches = batches or Batches
        self.total = total
        self.counts = np.bincount(classes)
        self.checkpoint = recipe.work / "checkpoint.keras"
        self.best = recipe.work / "best.keras"
        self.history: list[dict] = []  # a row for each finished mini-epoch
        self.step = 0  # finished steps of the mini-epoch in hand
        self.saved_at = time.monotonic()
        metrics = {"softmax": ["accuracy"], "arcface": [arcface_accuracy], "triplet": []}[recipe.loss]
        # Without its policy a checkpoint of mixed_float16 gets an optimizer that lacks the loss scaling's variables.
        keras.mixed_precision.set_global_policy(recipe.precision)
        if self.checkpoint.exists():
            self.model = models.load(self.checkpoint)
            # Keras keeps whether XLA was on, which a resumed run on another machine may have other reasons for.
            self.model.compile(self.model.optimizer, self.model.loss, metrics=metrics)
            with zipfile.ZipFile(self.checkpoint) as archive:
                progress = json.loads(archive.read("progress.json"))
            self.history, self.step = progress["history"], progress["step"]
            for seeds, state in zip(self._seeds(), progress["seeds"], strict=True):
                seeds.assign(state)
            print(f"going on after mini-epoch {len(self.history)} of {total}, step {self.step}")
        else:
            settings = {name: getattr(recipe, name) for name in models.SETTINGS}
            self.model = model or models.build_model(len(self.counts), **settings)
            self.model.compile(_optimizer(recipe), _loss(recipe), metrics=metrics)
        self.margins = class_margins(self.counts, recipe.margin_smallest, recipe.margin_largest)
        weights = 1 / np.log1p(self.counts) if recipe.class_weights else np.ones(len(self.counts))
        self.weights = weights / np.average(weights, weights=self.counts)

    def train(self, mini_epochs: Iterable[tuple], scores: Callable[[keras.Model], dict]) -> None:
        """Go through shards and their photos; a row for the history gets the model's `scores` after each of them.

        When this run is asked to end, write a checkpoint and raise Stopped.
        """
        logs = Writer(str(self.recipe.work / "logs"))
        bar = tqdm(total=self.total, desc=f"train {self.model.name}", initial=len(self.history), unit=" mini-epochs")
        try:
            for shard, ids in mini_epochs:
                row = self.mini_epoch(shard, ids) | scores(self.model)
                self.finish_mini_epoch(row)
                figures = {name: value for name, value in row.items() if isinstance(value, float)}
                for name, value in figures.items():
                    logs.add_scalar(name, value, len(self.history))
                logs.flush()
                bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})
                bar.update()
        except Stopped:
            self.save()
            raise
        finally:
            bar.close()
            logs.close()

    def mini_epoch(self, shard: TarShard | FolderShard | RandomAccess, ids: list[str]) -> dict:
        """Train on these photos, in this order; the row for the history. Raises Stopped between two steps."""
        number = len(self.history)
        size = triplets.batch_size(self.recipe) if self.recipe.loss == "triplet" else self.recipe.batch_size
        steps = -(-len(ids) // size)
        batches = self.batches(shard, ids, self.recipe.image_size, size, first=self.step)
        logs: list[dict] = []
        began = time.monotonic()
        for photo_ids, photos in tqdm(batches, shard.name, unit=" steps", leave=False):
            check_stop()
            if self.recipe.loss == "triplet" and self.step == 0:
                triplets.log_batch(self.recipe, photos, number + 1)
            rate = learning_rate(self.recipe, number + self.step / steps, self.total)
            self.model.optimizer.learning_rate.assign(rate)
            self.model.reset_metrics()  # Keras versions differ in whether they do it
            # Filled up where photos could not be read: XLA compiles anew for each shape. A repeated photo is its own
            # nearest positive, where triplets take the farthest.
            filled = np.resize(np.arange(len(photo_ids)), size)
            logs.append(self._train(photos[filled], self.classes[photo_ids].to_numpy()[filled]))
            if not math.isfinite(logs[-1]["loss"]):
                raise InputError(
                    f"the loss is {logs[-1]['loss']} in mini-epoch {number + 1}, step {self.step + 1}: lower "
                    f"--learning-rate (now {rate:g}) and begin again in another --work"
                )
            self.step += 1
            if (
                self.recipe.checkpoint_minutes
                and time.monotonic() > self.saved_at + 60 * self.recipe.checkpoint_minutes
            ):
                self.save()
        record_skipped(self.recipe.work, "train", shard, batches.unreadable)
        row = {"mini_epoch": number + 1, "shard": shard.name, "photos": len(ids) - len(batches.unreadable)}
        if logs:
            speed = len(logs) * size / (time.monotonic() - began)
            means = {name: float(np.mean([step[name] for step in logs])) for name in logs[0]}
            row |= {**means, "learning_rate": rate, "photos_per_second": speed}
        return row

    def _train(self, photos: np.ndarray, classes: np.ndarray) -> dict:
        targets = classes
        if self.recipe.loss == "arcface":
            targets = np.stack([classes, self.margins[classes]], axis=1).astype("float32")
        weights = self.weights[classes] if self.recipe.class_weights else None
        return self.model.train_on_batch(photos, targets, weights, return_dict=True)

    def finish_mini_epoch(self, row: dict) -> None:
        if self.recipe.keep_best and row.get(BEST, -1) > max((old.get(BEST, -1) for old in self.history), default=-1):
            models.save(self.model, self.best)
        self.history.append(row)
        self.step = 0
        if not self.recipe.checkpoint_minutes or len(self.history) == self.total:
            self.save()

    def _seeds(self) -> list[keras.Variable]:
        """Where the model's random generators stand: a saved model leaves it out."""
        return [variable for variable in self.model.variables if variable.name == "seed_generator_state"]

    def save(self) -> None:
        """Write the checkpoint, and the history as `training.csv`."""
        if not self.model.optimizer.built:  # before its first step: it would not load
            self.model.optimizer.build(self.model.trainable_variables)
        with whole(self.checkpoint) as part:
            self.model.save(part)
            with zipfile.ZipFile(part, "a") as archive:
                seeds = [ops.convert_to_numpy(state).tolist() for state in self._seeds()]
                progress = {"history": self.history, "step": self.step, "seeds": seeds}
                archive.writestr("progress.json", json.dumps(progress))
        with whole(self.recipe.work / "training.csv") as part:
            pd.DataFrame(self.history).to_csv(part, index=False)
        self.saved_at = time.monotonic()


def _optimizer(recipe: Recipe) -> keras.optimizers.Optimizer:
    accumulate = recipe.accumulate if recipe.accumulate > 1 else None
    if recipe.optimizer == "sgd":
        return keras.optimizers.SGD(recipe.learning_rate, momentum=0.9, gradient_accumulation_steps=accumulate)
    return keras.optimizers.Adam(recipe.learning_rate, gradient_accumulation_steps=accumulate)


def _loss(recipe: Recipe) -> keras.losses.Loss:
    if recipe.loss == "arcface":
        return ArcFace(recipe.scale)
    if recipe.loss == "triplet":
        return BatchHardTriplet()
    return SmoothedCrossentropy(recipe.label_smoothing, from_logits=True)
