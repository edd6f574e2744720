"""The mini-epochs in a row: steps, checkpoint, resume, validation."""

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

import model as models
from landmarks.mirrors.base import Mirror
from landmarks.networks import devices, hosts
from landmarks.networks.whitening import Method
from landmarks.running.command import InputError
from landmarks.running.digest import digest
from landmarks.running.files import whole
from landmarks.running.settings import ModelSettings, RunSettings, TrainingSettings
from landmarks.training import start, transfer, triplets
from landmarks.training.cache import Cache
from landmarks.training.schedule import Source, stream
from landmarks.training.trainer import CHECKPOINTS, Trainer
from landmarks.training.validation import Validation, clear, held_out


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

    On several hosts it is trained to the last checkpoint, which host 0 has: what it gives counts for nothing, and the
    same on host 0 alone goes on.

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
    source: Source = mirror
    batches = None
    if mirror.settings.cache and not by_triplets:
        cache = Cache(
            mirror, Path(mirror.settings.cache), classes, model.image_size, mirror.settings.cache_size * 10**9
        )  # fmt: skip
        source, batches = cache, cache.batches
    total = training.epochs * (1 if by_triplets else len(names))
    begun = run, model, training, classes, total
    if hosts.count > 1:
        begin_alike(*begun)
    trainer = Trainer(*begun, batches=batches)
    validation = Validation(
        mirror, held_names, held_classes, run.work, training.validation_images, model.image_size, training.batch_size
    )
    if hosts.count > 1:
        learnt = digest(names, "\n".join(classes.index).encode(), classes.to_numpy("int64"))
        held = digest(*validation.batches, validation.classes)
        hosts.require_alike("photos", {"learnt": learnt, "held out": held})
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
    if by_triplets:
        drawn = triplets.mini_epochs(model, training, mirror, names, classes, run.work, trainer.model, trainer.done)
    else:
        drawn = stream(training, source, names, classes, trainer.done)
    trainer.train(drawn, validation.scores)
    if hosts.count > 1:
        return trainer.model
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
    return start.better(trained, first, validation, not needs_head, run.work / start.NOTE, after)


def _claim(work: Path, classes: pd.Series) -> None:
    """Note which photos are learnt from, and as what, wherever they are; what was made from others goes.

    Raises InputError if a checkpoint was made from others.
    """
    note, photos = work / "train_photos.md5", digest("\n".join(classes.index).encode(), classes.to_numpy("int64"))
    if note.exists() and note.read_text(errors="replace") != photos:
        if any((work / name).exists() for name in CHECKPOINTS):
            raise InputError(
                f"{work} was begun on other train photos or landmarks than this mirror has: give the one that it was "
                f"begun on, wherever it is now, or another --work; if {note.name} is damaged, delete it"
            )
        clear(work)
        transfer.clear(work)
        shutil.rmtree(work / "centres", ignore_errors=True)
    with whole(note) as part:
        part.write_text(photos)


def begin_alike(run: RunSettings, *arguments: Any) -> None:
    """Host 0's last checkpoints, or that of a model which has not learnt yet, are in the work folders of all hosts."""
    paths = [run.work / name for name in CHECKPOINTS]
    if hosts.number == 0 and not any(path.exists() for path in paths):
        with devices.in_memory():
            Trainer(run, *arguments).save()
    for path in paths:
        hosts.bring(path)


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
    trainer.train(stream(stage, shards, names, classes, trainer.done), lambda _: {})
    top.set_weights(trainer.model.get_weights())
