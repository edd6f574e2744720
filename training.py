"""The mini-epochs in a row: schedule, checkpoint, resume, validation."""

import json
import math
import time
import zipfile

import keras
import numpy as np
import pandas as pd
from tensorboard.summary import Writer
from tqdm import tqdm

import metrics
import model as models
from command import InputError, Stopped, check_stop
from files import whole
from generators import Batches, record_skipped, shuffled
from losses import SmoothedCrossentropy
from mirror import Mirror
from recipe import Recipe


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
    """Train on the mirror's train shards, one a mini-epoch, from the checkpoint in the work folder if there is one.

    The last `validation_shards` shards are held out. Photos that are not in `photos` (`id`, `landmark_id`), or whose
    landmark is not in `landmarks` (classes,), are passed over.

    Raises:
        InputError: too few shards, or the checkpoint does not load.
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

    run = _Run(recipe, len(landmarks), total=recipe.epochs * len(names))
    validation = _Validation(recipe, mirror, held_out, classes)
    order = [names[i] for epoch in range(recipe.epochs) for i in shuffled(len(names), recipe.seed, epoch)]
    logs = Writer(str(recipe.work / "logs"))
    bar = tqdm(order, "training", initial=len(run.history), unit=" mini-epochs")
    try:
        for shard in mirror.stream("train", order[len(run.history) :]):
            row = run.mini_epoch(shard, classes) | validation.scores(run.model)
            run.finish_mini_epoch(row)
            figures = {name: value for name, value in row.items() if isinstance(value, float)}
            for name, value in figures.items():
                logs.add_scalar(name, value, len(run.history))
            logs.flush()
            bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})
            bar.update()
    except Stopped:
        run.save()
        raise
    finally:
        bar.close()
        logs.close()
    return run.model


def learning_rate(recipe: Recipe, mini_epochs: float, total: int) -> float:
    """Adam's learning rate after so many mini-epochs of `total`; a fraction counts the steps of the one in hand.

    Cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * mini_epochs / total)) / 2
    reached = [step for step in recipe.learning_rate_steps if step <= mini_epochs]
    return recipe.learning_rate_steps[max(reached)] if reached else recipe.learning_rate


class _Run:
    """The model, its optimizer, and where training stands; all of it is in the checkpoint, one file.

    The order of shards and photos follows from the seed and the mini-epoch's number alone.
    """

    def __init__(self, recipe: Recipe, classes: int, total: int):
        self.recipe = recipe
        self.total = total
        self.checkpoint = recipe.work / "checkpoint.keras"
        self.history: list[dict] = []  # a row for each finished mini-epoch
        self.step = 0  # finished steps of the mini-epoch in hand
        self.saved_at = time.monotonic()
        if self.checkpoint.exists():
            self.model = models.load(self.checkpoint)
            with zipfile.ZipFile(self.checkpoint) as archive:
                progress = json.loads(archive.read("progress.json"))
            self.history, self.step = progress["history"], progress["step"]
            print(f"going on after mini-epoch {len(self.history)} of {total}, step {self.step}")
        else:
            self.model = models.build_model(classes, **{name: getattr(recipe, name) for name in models.SETTINGS})
            self.model.compile(
                keras.optimizers.Adam(recipe.learning_rate),
                SmoothedCrossentropy(recipe.label_smoothing),
                metrics=["accuracy"],
                # XLA compiles for minutes on a CPU and wins nothing there; JAX needs it.
                jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
            )

    def mini_epoch(self, shard, classes: pd.Series) -> dict:
        """Train on the shard's photos that have a class; the row for the history. Raises Stopped between two steps."""
        number = len(self.history)
        ids = [identity for identity in shard.ids if identity in classes.index]
        ids = [ids[i] for i in shuffled(len(ids), self.recipe.seed, number)]
        # Filled up with the first photos, so that every batch has one shape: JAX compiles anew for each.
        steps = -(-len(ids) // self.recipe.batch_size)
        ids = np.resize(ids, steps * self.recipe.batch_size).tolist() if ids else []
        batches = Batches(shard, ids, self.recipe.image_size, self.recipe.batch_size, first=self.step)
        logs: list[dict] = []
        began = time.monotonic()
        for photo_ids, photos in tqdm(batches, shard.name, unit=" steps", leave=False):
            check_stop()
            rate = learning_rate(self.recipe, number + self.step / steps, self.total)
            self.model.optimizer.learning_rate.assign(rate)
            self.model.reset_metrics()  # Keras versions differ in whether they do it
            logs.append(self.model.train_on_batch(photos, classes[photo_ids].to_numpy(), return_dict=True))
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
            speed = len(logs) * self.recipe.batch_size / (time.monotonic() - began)
            means = {name: float(np.mean([step[name] for step in logs])) for name in ("loss", "accuracy")}
            row |= {**means, "learning_rate": rate, "photos_per_second": speed}
        return row

    def finish_mini_epoch(self, row: dict) -> None:
        self.history.append(row)
        self.step = 0
        if not self.recipe.checkpoint_minutes or len(self.history) == self.total:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, and the history as `training.csv`."""
        with whole(self.checkpoint) as part:
            self.model.save(part)
            with zipfile.ZipFile(part, "a") as archive:
                archive.writestr("progress.json", json.dumps({"history": self.history, "step": self.step}))
        with whole(self.recipe.work / "training.csv") as part:
            pd.DataFrame(self.history).to_csv(part, index=False)
        self.saved_at = time.monotonic()


class _Validation:
    """Photos of the held-out shards, of landmarks that are learnt, in memory: uint8, 400 MB for 2,048 of 256 px."""

    def __init__(self, recipe: Recipe, mirror: Mirror, names: list[str], classes: pd.Series):
        self.batch_size = recipe.batch_size
        self.batches: list[np.ndarray] = []
        ids: list[str] = []
        for shard in mirror.stream("train", names):
            room = recipe.validation_images - len(ids)
            wanted = [identity for identity in shard.ids if identity in classes.index][:room]
            for some_ids, photos in Batches(shard, wanted, recipe.image_size, recipe.batch_size):
                ids += some_ids
                self.batches.append(photos)
                check_stop()
            if len(ids) == recipe.validation_images:
                break
        self.solution = {identity: [int(classes[identity])] for identity in ids}
        self.predictor: keras.Model | None = None

    def scores(self, model: keras.Model) -> dict:
        """`validation_accuracy` and `validation_gap`: on landmarks only, so GAP is far above the test set's."""
        if not self.solution:
            return {}
        self.predictor = self.predictor or models.predictor(model)
        outputs = []
        for photos in self.batches:
            check_stop()
            outputs.append(models.predict(self.predictor, photos, self.batch_size))
        landmark, score = (np.concatenate([output[name] for output in outputs]) for name in ("landmark", "score"))
        predictions = dict(zip(self.solution, zip(landmark.tolist(), score.tolist(), strict=True), strict=True))
        return {
            "validation_accuracy": metrics.top1_accuracy(predictions, self.solution),
            "validation_gap": metrics.gap(predictions, self.solution),
        }
