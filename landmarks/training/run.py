"""The mini-epochs in a row: steps, checkpoint, resume, validation."""

import json
import math
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import ops
from tensorboard.summary import Writer

import model as models
from generators import Batches
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.shards import Shard
from landmarks.networks.losses import ArcFace, BatchHardTriplet, SmoothedCrossentropy, arcface_accuracy, class_margins
from landmarks.networks.whitening import Method
from landmarks.running.arrays import digest
from landmarks.running.command import InputError, Stopped, check_stop, warn
from landmarks.running.files import require_space, whole
from landmarks.running.progress import Progress
from landmarks.running.settings import ModelSettings, RunSettings, TrainingSettings
from landmarks.running.skipped import record_skipped
from landmarks.training import start, transfer, triplets
from landmarks.training.schedule import learning_rate, optimizer, stream
from landmarks.training.validation import Validation, clear, held_out

BEST = "nearest_photo_gap"  # what `keep_best` goes by
CHECKPOINTS = ("checkpoint.keras", "checkpoint-before.keras")  # the last two


def train(
    run: RunSettings,
    model: ModelSettings,
    training: TrainingSettings,
    mirror: Mirror,
    photos: pd.DataFrame,
    landmarks: np.ndarray,
    needs_head: bool = False,
    whitening: Method = "none",
) -> keras.Model:
    """Train on the mirror's train shards, from the checkpoint in the work folder if there is one.

    A mini-epoch is one shard; with triplets it is one pass over all photos, in batches of similar landmarks. The last
    `validation_shards` shards are held out; of a mirror with no more than these, every fifth photo of each landmark.
    Photos that are not in `photos` (`id`, `landmark_id`), or whose landmark is not in `landmarks` (classes,), are
    passed over. With `bottleneck_epochs` the top learns before, so that no backbone is trained under a random top. With
    `compare_start` a model that finds held-out photos no better than its first weights, whitened, gives way to these,
    which have no head, unless one is needed or another model stands beside it.

    Args:
        whitening: what follows, by which the model is compared.

    Raises:
        InputError: the work folder was begun on other photos, the checkpoint does not load, or triplets are to be drawn
            from a mirror at a URL.
        Stopped: this run is asked to end; a checkpoint is written first.
    """
    photos = photos[photos["landmark_id"].isin(landmarks)]
    classes = pd.Series(np.searchsorted(landmarks, photos["landmark_id"]), index=photos["id"])
    _claim(run.work, classes)
    names = mirror.shard_names("train")
    held_names, held_classes = held_out(training, names, classes)
    if training.validation_shards < len(names):
        names = names[: len(names) - training.validation_shards]
    else:
        classes = classes.drop(held_classes.index)
        print(
            f"{mirror.name} has {len(names)} train shards, too few to hold out {training.validation_shards}: "
            f"{len(held_classes):,} photos are held out instead"
        )

    by_triplets = model.loss == "triplet"
    trainer = Trainer(run, model, training, classes, total=training.epochs * (1 if by_triplets else len(names)))
    validation = Validation(
        mirror, held_names, held_classes, run.work, training.validation_images, model.image_size, training.batch_size
    )
    if training.keep_best and not validation.is_query.any():
        held_out_photos = len(validation.classes)
        print(f"no landmark has two of the {held_out_photos} held-out photos: the last model is kept, not the best")
    if training.bottleneck_epochs:
        if not trainer.resumed:
            _train_top(run, model, training, mirror, names, classes, trainer.model)
            trainer.save()  # which tells that this stage is done
            scores = validation.scores(trainer.model)
            print("the top is trained:", ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
        transfer.clear(run.work)
    done = len(trainer.history)
    if by_triplets:
        drawn = triplets.mini_epochs(model, training, mirror, names, classes, run.work, trainer.model, done)
    else:
        drawn = stream(training, mirror, names, classes, done)
    trainer.train(drawn, validation.scores)
    trained = models.load(trainer.best) if trainer.best.exists() else trainer.model
    if not training.compare_start or run.beside or model.weights == "none":
        return trained
    given = model, training, mirror, names, classes
    first = start.whitened(*given) if start.can_tell(validation.classes) else None
    if first is None:
        print(
            f"training is not held against its first weights: fewer than {start.FEWEST} held-out photos have another "
            f"of their landmark, or embeddings have more than {start.LARGEST:,} numbers"
        )
        return trained
    after = None if whitening == "none" else start.whitening(whitening, trained, *given)
    return start.better(trained, first, validation, not needs_head, after)


def _claim(work: Path, classes: pd.Series) -> None:
    """Note which photos are learnt from, and as what, wherever they are; what was made from others goes.

    Raises InputError if a checkpoint was made from others.
    """
    note, photos = work / "train_photos.md5", digest("\n".join(classes.index).encode(), classes.to_numpy("int64"))
    if note.exists() and note.read_text() != photos:
        if any((work / name).exists() for name in CHECKPOINTS):
            raise InputError(
                f"{work} was begun on other train photos or landmarks than this mirror has: give the one that it was "
                "begun on, wherever it is now, or another --work"
            )
        clear(work)
        transfer.clear(work)
        shutil.rmtree(work / "centres", ignore_errors=True)
    with whole(note) as part:
        part.write_text(photos)


def _train_top(
    run: RunSettings,
    model: ModelSettings,
    training: TrainingSettings,
    mirror: Mirror,
    names: list[str],
    classes: pd.Series,
    whole_model: keras.Model,
) -> None:
    backbone, top = transfer.divide(model, whole_model)
    folder = transfer.folder(run.work)
    transfer.write_features(mirror, names, classes, backbone, run.work, model.image_size, training.batch_size)
    stage = training.stage(training.bottleneck_epochs)
    trainer = Trainer(
        run.model_copy(update={"work": folder}), model, stage, classes, stage.epochs * len(names), top,
        transfer.FeatureBatches,
    )  # fmt: skip
    shards = transfer.FeatureShards(folder, backbone.output["features"].shape[1:])
    trainer.train(stream(stage, shards, names, classes, len(trainer.history)), lambda _: {})
    top.set_weights(trainer.model.get_weights())


class Trainer:
    """The model, its optimizer, and where training stands; all of it is in the checkpoint, one file.

    The order of shards and photos follows from the seed and the mini-epoch's number alone.
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
        self.history: list[dict] = []  # a row for each finished mini-epoch
        self.step = 0  # finished steps of the mini-epoch in hand
        self.saved_at = time.monotonic()
        metrics = {"softmax": ["accuracy"], "arcface": [arcface_accuracy], "triplet": []}[model.loss]
        # Without its policy a checkpoint of mixed_float16 gets an optimizer that lacks the loss scaling's variables.
        keras.mixed_precision.set_global_policy(model.precision)
        self.resumed = self.checkpoint.exists() or self.previous.exists()
        if self.resumed:
            self.model, progress = self._load()
            # Keras keeps whether XLA was on, which a resumed run on another machine may have other reasons for.
            self.model.compile(self.model.optimizer, self.model.loss, metrics=metrics)
            self.history, self.step = progress["history"], progress["step"]
            for seeds, state in zip(self._seeds(), progress["seeds"], strict=True):
                seeds.assign(state)
            print(f"going on after mini-epoch {len(self.history)} of {total}, step {self.step}")
        else:
            self.model = network or models.build_model(len(self.counts), model, training.seed)
            decay = training.layer_decay
            rates = models.learning_rates(self.model, decay) if decay < 1 else []
            self.model.compile(optimizer(training, rates), _loss(model.loss, training), metrics=metrics)
        self.margins = class_margins(self.counts, training.margin_smallest, training.margin_largest)
        weights = 1 / np.log1p(self.counts) if training.class_weights else np.ones(len(self.counts))
        self.weights = weights / np.average(weights, weights=self.counts)

    def train(self, mini_epochs: Iterable[tuple[Shard, list[str]]], scores: Callable[[keras.Model], dict]) -> None:
        """Go through shards and their photos; a row for the history gets the model's `scores` after each of them.

        When this run is asked to end, write a checkpoint and raise Stopped.
        """
        logs = Writer(str(self.run.work / "logs"))
        bar = Progress(
            total=self.total, desc=f"train {self.model.name}", initial=len(self.history), unit=" mini-epochs"
        )
        try:
            for shard, ids in mini_epochs:
                row = self.mini_epoch(shard, ids) | scores(self.model)
                self.finish_mini_epoch(row)
                figures = {name: value for name, value in row.items() if isinstance(value, float)}
                for name, value in figures.items():
                    logs.add_scalar(name, value, len(self.history))
                logs.flush()
                bar.show({name: figures[name] for name in ("loss", BEST, *figures) if name in figures})
                bar.update()
        except Stopped:
            self.save()
            raise
        finally:
            bar.close()
            logs.close()

    def mini_epoch(self, shard: Shard, ids: list[str]) -> dict:
        """Train on these photos, in this order; the row for the history. Raises Stopped between two steps."""
        number = len(self.history)
        size = self.batch_size
        steps = -(-len(ids) // size)
        batches = self.batches(shard, ids, self.settings.image_size, size, first=self.step)
        logs: list[dict] = []
        began = time.monotonic()
        for photo_ids, photos in Progress(batches, shard.name, unit=" steps", leave=False):
            check_stop()
            if self.settings.loss == "triplet" and self.step == 0:
                triplets.log_batch(self.run.work, photos, self.training.photos_per_class, number + 1)
            rate = learning_rate(self.training, number + self.step / steps, self.total)
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
            if self.run.checkpoint_minutes and time.monotonic() > self.saved_at + 60 * self.run.checkpoint_minutes:
                self.save()
        record_skipped(self.run.work, "train", shard.name, [*shard.refused, *batches.unreadable])
        row = {"mini_epoch": number + 1, "shard": shard.name, "photos": len(ids) - len(batches.unreadable)}
        if logs:
            speed = len(logs) * size / (time.monotonic() - began)
            means = {name: float(np.mean([step[name] for step in logs])) for name in logs[0]}
            row |= {**means, "learning_rate": rate, "photos_per_second": speed}
        return row

    def _train(self, photos: np.ndarray, classes: np.ndarray) -> dict:
        targets = classes
        if self.settings.loss == "arcface":
            targets = np.stack([classes, self.margins[classes]], axis=1).astype("float32")
        weights = self.weights[classes] if self.training.class_weights else None
        return self.model.train_on_batch(photos, targets, weights, return_dict=True)

    def finish_mini_epoch(self, row: dict) -> None:
        if self.training.keep_best and row.get(BEST, -1) > max((old.get(BEST, -1) for old in self.history), default=-1):
            models.save(self.model, self.best)
        self.history.append(row)
        self.step = 0
        if not self.run.checkpoint_minutes or len(self.history) == self.total:
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
        size = self.checkpoint.stat().st_size if self.checkpoint.exists() else 0
        if size > shutil.disk_usage(self.run.work).free:
            self.previous.unlink(missing_ok=True)  # the last one was read or written whole
        require_space(self.run.work, size, "a checkpoint takes")
        with whole(self.checkpoint) as part:
            self.model.save(part)
            with zipfile.ZipFile(part, "a") as archive:
                seeds = [ops.convert_to_numpy(state).tolist() for state in self._seeds()]
                progress = {"history": self.history, "step": self.step, "seeds": seeds}
                archive.writestr("progress.json", json.dumps(progress))
            if self.checkpoint.exists():
                os.replace(self.checkpoint, self.previous)
        with whole(self.run.work / "training.csv") as part:
            pd.DataFrame(self.history).to_csv(part, index=False)
        self.saved_at = time.monotonic()


def _loss(name: str, training: TrainingSettings) -> keras.losses.Loss:
    if name == "arcface":
        return ArcFace(training.scale)
    if name == "triplet":
        return BatchHardTriplet()
    return SmoothedCrossentropy(training.label_smoothing, from_logits=True)
