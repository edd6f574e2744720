"""The model, its optimizer, and where training stands: mini-epochs, steps, checkpoints, resume."""

import json
import math
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import ops
from tensorboard.summary import Writer

import model as models
from generators import Batches
from landmarks.mirrors.shards import Shard
from landmarks.networks import hosts
from landmarks.networks.devices import placing, require_shared
from landmarks.networks.losses import ArcFace, BatchHardTriplet, SmoothedCrossentropy, arcface_accuracy, class_margins
from landmarks.running.command import InputError, Stopped, warn
from landmarks.running.files import require_space, whole
from landmarks.running.progress import Progress
from landmarks.running.settings import ModelSettings, RunSettings, TrainingSettings
from landmarks.running.skipped import record_skipped
from landmarks.running.threads import in_background
from landmarks.training import triplets
from landmarks.training.schedule import learning_rate, optimizer
from landmarks.training.step import Steps

BEST = "nearest_photo_gap"  # what `keep_best` goes by
CHECKPOINTS = ("checkpoint.keras", "checkpoint-before.keras")  # the last two
BATCHES_READY = 2  # on the device before their steps
STEPS_A_READING = 16  # each one of the loss waits for the device, which then waits for its next step


class Trainer:
    """The model, its optimizer, and where training stands; all of it is in the checkpoint, one file.

    The order of shards and photos follows from the seed and the mini-epoch's number alone. Several hosts go through as
    many mini-epochs at once, which are a row of the history together; no work folder but that of host 0 counts.
    """

    def __init__(
        self,
        run: RunSettings,
        model: ModelSettings,
        training: TrainingSettings,
        classes: pd.Series,
        total: int,
        network: keras.Model | None = None,
        batches: Callable[..., Batches] | None = None,
    ):
        """`network` and what it takes in `batches`: the whole model and photos, unless they are given."""
        self.run = run
        self.settings = model
        self.training = training
        self.classes = classes
        self.batch_size = triplets.batch_size(training) if model.loss == "triplet" else training.batch_size
        self.batches = batches or Batches
        self.total = total
        self.counts = np.bincount(classes)
        self.checkpoint = run.work / CHECKPOINTS[0]
        self.previous = run.work / CHECKPOINTS[1]
        self.best = run.work / "best.keras"
        self.history: list[dict] = []  # a row for each finished mini-epoch, or those of a round of hosts
        self.step = 0  # finished steps of the mini-epoch in hand
        self.saved_at = time.monotonic()
        metrics = {"softmax": ["accuracy"], "arcface": [arcface_accuracy], "triplet": []}[model.loss]
        samples = model.loss == "arcface" and model.sampled_classes < 1
        if samples:
            metrics = []  # of all classes, which no step sees
        # Without its policy a checkpoint of mixed_float16 gets an optimizer that lacks the loss scaling's variables.
        keras.mixed_precision.set_global_policy(model.precision)
        self.resumed = self.checkpoint.exists() or self.previous.exists()
        if self.resumed:
            self.model, progress = self._load()
            # Keras keeps whether XLA was on, which a resumed run on another machine may have other reasons for.
            self.model.compile(self.model.optimizer, self.model.loss, metrics=metrics)
            self.history, self.step = progress["history"], progress["step"]
            if self.step and progress.get("hosts", 1) != hosts.count:  # a round has other photos then
                print(f"mini-epoch {self.done + 1} is gone through once more, since the number of hosts is another one")
                self.step = 0
            for seeds, state in zip(self._seeds(), progress["seeds"], strict=True):
                seeds.assign(state)
            print(f"going on after mini-epoch {self.done} of {total}, step {self.step}")
        else:
            self.model = network or models.build_model(len(self.counts), model, training.seed)
            decay = training.layer_decay
            rates = models.learning_rates(self.model, decay) if decay < 1 else []
            self.model.compile(optimizer(training, rates), _loss(model.loss, training), metrics=metrics)
        if samples:
            self.model.loss.head = self.model.get_layer("landmark")
        require_shared(self.model)
        self.margins = class_margins(self.counts, training.margin_smallest, training.margin_largest)
        weights = 1 / np.log1p(self.counts) if training.class_weights else np.ones(len(self.counts))
        self.weights = weights / np.average(weights, weights=self.counts)

    @property
    def done(self) -> int:
        """How many mini-epochs are finished."""
        return self.history[-1]["mini_epoch"] if self.history else 0

    def train(self, mini_epochs: Iterable[tuple[Shard, list[str]]], scores: Callable[[keras.Model], dict]) -> None:
        """Go through shards and their photos; a row for the history gets the model's `scores` after each of them.

        When this run is asked to end, write a checkpoint and raise Stopped.
        """
        logs = Writer(str(self.run.work / "logs"))
        bar = Progress(total=self.total, desc=f"train {self.model.name}", initial=self.done, unit=" mini-epochs")
        try:
            for shard, ids in mini_epochs:
                row, before = self.mini_epoch(shard, ids) | scores(self.model), self.done
                self.finish_mini_epoch(row)
                figures = {name: value for name, value in row.items() if isinstance(value, float)}
                for name, value in figures.items():
                    logs.add_scalar(name, value, self.done)
                logs.flush()
                bar.show({name: figures[name] for name in ("loss", BEST, *figures) if name in figures})
                bar.update(self.done - before)
        except Stopped:
            self.save()
            raise
        finally:
            bar.close()
            logs.close()

    def mini_epoch(self, shard: Shard, ids: list[str]) -> dict:
        """Train on these photos, in this order; the row for the history. Raises Stopped between two steps.

        Of several hosts each has a shard of its own.
        """
        number, size = self.done, self.batch_size // hosts.count
        at_once = min(hosts.count, self.total - number)
        steps = -(-int(hosts.of_all(len(ids)).max()) // size)
        batches = self.batches(shard, ids, self.settings.image_size, size, first=self.step)
        taken = Steps(self.model)
        began = time.monotonic()
        try:
            prepared = self._prepared(batches, steps - self.step, placing())
            with closing(in_background(prepared, BATCHES_READY)) as ready:
                for photos, targets, weights in Progress(
                    ready, shard.name, steps - self.step, unit=" steps", leave=False
                ):
                    hosts.check_stop(self.step)
                    if self.settings.loss == "triplet" and self.step == 0:
                        shown = ops.convert_to_numpy(photos)
                        triplets.log_batch(self.run.work, shown, self.training.photos_per_class, number + 1)
                    rate = learning_rate(self.training, number + at_once * self.step / steps, self.total)
                    taken(photos, targets, weights, rate)
                    self.step += 1
                    minutes = self.run.checkpoint_minutes
                    is_time = bool(minutes and time.monotonic() > self.saved_at + 60 * minutes)
                    due = hosts.first_says(self.step, is_time)
                    if due or taken.count % STEPS_A_READING == 0:
                        self._require_finite(taken, rate)
                    if due:
                        taken.finish()
                        self.save()
        except Stopped:
            if taken.count:
                self._require_finite(taken, rate)
            raise
        finally:
            taken.finish()
        record_skipped(self.run.work, "train", shard.name, [*shard.refused, *batches.unreadable])
        photos = int(hosts.of_all(len(ids) - len(batches.unreadable)).sum())
        row = {"mini_epoch": number + at_once, "shard": shard.name, "photos": photos}
        if taken.count:
            self._require_finite(taken, rate)
            speed = taken.count * self.batch_size / (time.monotonic() - began)
            row |= {**taken.read(), "learning_rate": rate, "photos_per_second": speed}
        return row

    def _prepared(self, batches: Batches, steps: int, place: Callable[..., Any]) -> Iterator[tuple[Any, ...]]:
        """Batches as the step takes them, on the device already, where `place` lays them.

        All hosts take as many steps: where one has no batch left, its last photos come again, and count nothing.
        """
        for batch in batches if hosts.count == 1 else self._as_many(batches, steps):
            arrays = self._arrays(*batch)
            yield tuple(None if array is None else place(array, self.batch_size) for array in arrays)

    def _as_many(self, batches: Batches, steps: int) -> Iterator[tuple[list[str], np.ndarray, float]]:
        """So many batches, and what each counts."""
        side = self.settings.image_size
        last = [self.classes.index[0]], np.zeros((1, side, side, 3), "uint8")
        of_shard = iter(batches)
        for _ in range(steps):
            batch = next(of_shard, None)
            last = batch or last
            yield *last, float(batch is not None)

    def _arrays(self, ids: list[str], photos: np.ndarray, counts: float | None = None) -> tuple[Any, ...]:
        """Photos, targets and weights; each weight is multiplied by `counts`, if that is given."""
        # Filled up where photos could not be read: XLA compiles anew for each shape. A repeated photo is its own
        # nearest positive, where triplets take the farthest.
        size = self.batch_size // hosts.count
        filled = np.resize(np.arange(len(ids)), size)
        classes = self.classes[ids].to_numpy()[filled]
        targets = classes
        if self.settings.loss == "arcface":
            targets = np.stack([classes, self.margins[classes]], axis=1).astype("float32")
        weights = self.weights[classes] if self.training.class_weights else None
        if counts is not None:
            weights = np.full(size, counts, "float32") if weights is None else (counts * weights).astype("float32")
        return photos[filled] if len(ids) < size else photos, targets, weights

    def _require_finite(self, taken: Steps, rate: float) -> None:
        loss = taken.read()["loss"]
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} in mini-epoch {self.done + 1}, by step {self.step}: lower "
                f"--learning-rate (now {rate:g}) and begin again in another --work"
            )

    def finish_mini_epoch(self, row: dict) -> None:
        if self.training.keep_best and row.get(BEST, -1) > max((old.get(BEST, -1) for old in self.history), default=-1):
            with hosts.gathered(self.model.variables) as writes:
                if writes:
                    models.save(self.model, self.best)
        self.history.append(row)
        self.step = 0
        if not self.run.checkpoint_minutes or self.done == self.total:
            self.save()

    def _seeds(self) -> list[keras.Variable]:
        """Where the model's random generators stand: a saved model leaves it out."""
        return [variable for variable in self.model.variables if variable.name == "seed_generator_state"]

    def _load(self) -> tuple[keras.Model, dict]:
        """The last checkpoint that can be read, and where training stood; Raises InputError if there is none."""
        there = [path for path in (self.checkpoint, self.previous) if path.exists()]
        for path in there:
            try:
                model = models.load(path)
                with zipfile.ZipFile(path) as archive:
                    progress = json.loads(archive.read("progress.json"))
                if path == self.previous:
                    self.checkpoint.unlink(missing_ok=True)  # else it would take this one's place at the next one
                return model, progress
            except (InputError, KeyError, ValueError, zipfile.BadZipFile) as error:
                if path == there[-1]:
                    raise InputError(f"{path} cannot be gone on from ({error}); delete it to begin again") from error
                warn(f"{path} could not be read ({error}); the one before was gone on from")
        raise AssertionError("there is a checkpoint")

    def save(self) -> None:
        """Write the checkpoint beside the one before, and the history as `training.csv`."""
        if not self.model.optimizer.built:  # before its first step: it would not load
            self.model.optimizer.build(self.model.trainable_variables)
        with hosts.gathered([*self.model.variables, *self.model.optimizer.variables]) as writes:
            if writes:
                self._write()
        self.saved_at = time.monotonic()

    def _write(self) -> None:
        size = self.checkpoint.stat().st_size if self.checkpoint.exists() else 0
        if size > shutil.disk_usage(self.run.work).free:
            self.previous.unlink(missing_ok=True)  # the last one was read or written whole
        require_space(self.run.work, size, "a checkpoint takes")
        with whole(self.checkpoint) as part:
            self.model.save(part)
            # Opened here: zipfile would begin a file anew that it cannot open to add to it.
            with open(part, "r+b") as file, zipfile.ZipFile(file, "a") as archive:
                seeds = [ops.convert_to_numpy(state).tolist() for state in self._seeds()]
                progress = {"history": self.history, "step": self.step, "seeds": seeds, "hosts": hosts.count}
                archive.writestr("progress.json", json.dumps(progress))
            if self.checkpoint.exists():
                os.replace(self.checkpoint, self.previous)
        with whole(self.run.work / "training.csv") as part:
            pd.DataFrame(self.history).to_csv(part, index=False)


def _loss(name: str, training: TrainingSettings) -> keras.losses.Loss:
    if name == "arcface":
        return ArcFace(training.scale)
    if name == "triplet":
        return BatchHardTriplet()
    return SmoothedCrossentropy(training.label_smoothing, from_logits=True)
