"""Mini-epochs of P x K batches, each of photos of similar landmarks, drawn from a mirror in a folder.

Hard triplets are among look-alikes: landmarks are grouped into subspaces by k-means of their mean embeddings under the
net that training starts from, and every batch comes from one of them.
"""

import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

import model as models
from generators import Batches
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.random_access import RandomAccess
from landmarks.mirrors.shards import Shard
from landmarks.networks.layers import unit
from landmarks.running.command import check_stop
from landmarks.running.files import whole
from landmarks.running.progress import Progress
from landmarks.running.settings import ModelSettings, TrainingSettings
from landmarks.training.sampling import epoch_batches, find_subspaces

CLASSES_A_FILE = 1024


def batch_size(settings: TrainingSettings) -> int:
    """Photos in a batch of triplets."""
    return settings.classes_per_batch * settings.photos_per_class


def mini_epochs(
    model: ModelSettings,
    training: TrainingSettings,
    mirror: Mirror,
    names: list[str],
    classes: pd.Series,
    work: Path,
    network: keras.Model,
    done: int,
) -> Iterator[tuple[Shard, list[str]]]:
    """For each epoch after the first `done`: the photos of these shards, and their ids batch after batch.

    `classes` are the classes by photo id; `network` is as training starts if the centres of the classes are not in the
    work folder yet. Raises InputError for a mirror at a URL.
    """
    photos = RandomAccess(mirror, "train", names, classes.index.tolist(), model.image_size)
    try:
        there = classes[photos.ids]
        by_class = [ids.tolist() for _, ids in there.index.to_series().groupby(there.to_numpy())]
        pooled = network.get_layer("pooling" if model.embedding_size else "embedding").output
        embed = keras.Model(network.input, {"embedding": unit(pooled)})
        first = [ids[: training.photos_per_class] for ids in by_class]
        centres = class_centres(embed, photos, first, work / "centres", model.image_size, training.batch_size)
        subspaces = find_subspaces(centres, training.subspaces, training.classes_per_batch, training.seed)
        for epoch in range(done, training.epochs):
            batches = epoch_batches(
                by_class, subspaces, training.classes_per_batch, training.photos_per_class, training.seed, epoch
            )
            yield photos, [identity for batch in batches for identity in batch]
    finally:
        photos.close()


def class_centres(
    embed: keras.Model,
    photos: RandomAccess,
    by_class: list[list[str]],
    folder: Path,
    image_size: int,
    batch_size: int,
) -> np.ndarray:
    """The mean embedding of some photos of each class, (classes, D) float32.

    1,024 classes make a file in `folder`; those that are there are kept, so an interrupted run goes on.

    Args:
        embed: photos to their `embedding`: the backbone's pooled feature map, as a dense layer is still random at the
            start.
        by_class: the ids of the photos that count, at least one a class.
    """
    files = []
    for begin in Progress(range(0, len(by_class), CLASSES_A_FILE), "class centres", unit=" files"):
        files.append(folder / f"{begin:06d}.npy")
        if files[-1].exists():
            continue
        group = by_class[begin : begin + CLASSES_A_FILE]
        class_of = {identity: number for number, ids in enumerate(group) for identity in ids}
        centres = np.zeros((len(group), embed.output["embedding"].shape[-1]), "float32")
        for ids, images in Batches(photos, list(class_of), image_size, batch_size):
            check_stop()
            embeddings = models.predict(embed, images, batch_size)["embedding"]
            np.add.at(centres, [class_of[identity] for identity in ids], embeddings)
        with whole(files[-1]) as part:
            np.save(part, centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12))
    return np.concatenate([np.load(path) for path in files])


def log_batch(work: Path, photos: np.ndarray, photos_per_class: int, mini_epoch: int) -> None:
    """Write a batch (P * K, H, W, 3) uint8 to the TensorBoard logs: a row for each landmark."""
    side = min(photos.shape[1], 96)
    sheet = Image.new("RGB", (photos_per_class * side, -(-len(photos) // photos_per_class) * side))
    for number, photo in enumerate(photos):
        row, column = divmod(number, photos_per_class)
        sheet.paste(Image.fromarray(photo).resize((side, side)), (column * side, row * side))
    encoded = BytesIO()
    sheet.save(encoded, "JPEG")
    image = Summary.Image(width=sheet.width, height=sheet.height, colorspace=3, encoded_image_string=encoded.getvalue())
    logs = EventFileWriter(str(work / "logs"))
    summary = Summary(value=[Summary.Value(tag="batch", image=image)])
    logs.add_event(Event(wall_time=time.time(), step=mini_epoch, summary=summary))
    logs.close()
