"""DELF's model from the train photos: its attention, then PCA.

The publication (Noh et al., ICCV 2017) trains in two stages. The first fine-tunes the backbone by classification: that
is what recognition.py does. In the second the features are fixed, and the attention learns to weigh them so that a
softmax tells the landmark from their weighted sum.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from tqdm import tqdm

import delf
import model as models
import training
from command import check_stop
from images import UnreadablePhoto
from local_features import decode
from mirror import Mirror
from settings import Recipe

DIMENSIONS = 40
POINTS = 1000
PCA_PHOTOS = 100


@models.register
class AttentivePooling(layers.Layer):
    """Features (B, H, W, C) and their scores (B, H, W, 1) to (B, C) float32: L2-normalised, weighted, their mean.

    The publication has the sum; the mean, as in its release, does not grow with the photo.
    """

    def call(self, features, scores):
        return ops.mean(models.unit(features) * scores, axis=(1, 2))


def train_delf(recipe: Recipe, mirror: Mirror, photos: pd.DataFrame, landmarks: np.ndarray) -> Path:
    """Make `WORK/delf.keras` unless it is there: the features of `WORK/model.keras`, an attention, and PCA.

    The attention is trained for `delf_epochs`, from the checkpoint in `WORK/attention/` if there is one; with none the
    norm of the features stands in for it. Without a `model.keras` the features are those of the recipe's backbone with
    its first weights.

    Args:
        photos: `id` and `landmark_id` of the train photos to learn from.
        landmarks: (classes,) the landmark ids to learn, ascending.

    Raises:
        InputError: the model or the checkpoint does not load.
        Stopped: this run is asked to end; a checkpoint is written first.
    """
    path = recipe.work / delf.FILE
    if path.exists():
        return path
    trained = recipe.work / "model.keras"
    if trained.exists():
        start = models.load(trained)
    else:
        start = models.build_model(len(landmarks), **{name: getattr(recipe, name) for name in models.SETTINGS})
    backbone = next(layer for layer in start.layers if isinstance(layer, keras.Model))
    features = delf.stride_16_features(backbone)
    head = delf.FeatureNorm()
    if recipe.delf_epochs:
        head = train_attention(recipe, mirror, photos, landmarks, start, features)
    whole_features = delf.build(start.get_layer("normalization"), features, head)
    mean, axes = principal_axes(_samples(recipe, mirror, whole_features), DIMENSIONS)
    models.save(delf.with_pca(whole_features, mean, axes), path)
    (recipe.work / "attention/checkpoint.keras").unlink(missing_ok=True)
    return path


def train_attention(
    recipe: Recipe,
    mirror: Mirror,
    photos: pd.DataFrame,
    landmarks: np.ndarray,
    start: keras.Model,
    features: keras.Model,
) -> keras.Layer:
    """Train the attention on the mirror's train shards; only it and a softmax over the landmarks change.

    Adam at 1e-3 with a cosine schedule; augmentation, batches and seed as the recipe has them.
    """
    stage = recipe.stage("attention", recipe.delf_epochs, loss="softmax", schedule="cosine")
    keras.utils.set_random_seed(recipe.seed)
    shown = keras.Input((None, None, 3), dtype="uint8", name="photos")
    maps = features(start.get_layer("normalization")(start.get_layer("augmentation")(shown)), training=False)
    pooled = AttentivePooling(dtype="float32")(maps, delf.attention_head()(maps))
    # A random softmax would teach the attention to look elsewhere before it knows a landmark itself: over frozen
    # ImageNet features of 48 real landmarks the loss came down to 1.4 in ten epochs; from zeros it comes down to 0.2.
    softmax = layers.Dense(len(landmarks), kernel_initializer="zeros", dtype="float32", name="landmark")

    photos = photos[photos["landmark_id"].isin(landmarks)]
    classes = pd.Series(np.searchsorted(landmarks, photos["landmark_id"]), index=photos["id"])
    names = mirror.shard_names("train")
    run = training.Run(stage, classes, stage.epochs * len(names), keras.Model(shown, softmax(pooled), name="attention"))
    run.train(training.stream(stage, mirror, names, classes, run.model, len(run.history)), lambda _: {})
    return run.model.get_layer("attention")


def principal_axes(samples: Iterable[np.ndarray], dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """PCA of samples (N, C) that come in parts: their mean (C,) and the first axes (C, `dimensions`), float32.

    Only the sums are in memory: 8 MB for 1,024 channels. There are at most C axes.
    """
    count, total, products = 0, 0.0, 0.0
    for part in samples:
        part = part.astype("float64")
        count, total, products = count + len(part), total + part.sum(axis=0), products + part.T @ part
    mean = total / count
    _, axes = np.linalg.eigh(products / count - np.outer(mean, mean))
    return mean.astype("float32"), axes[:, ::-1][:, :dimensions].astype("float32")


def _samples(recipe: Recipe, mirror: Mirror, model: keras.Model) -> Iterator[np.ndarray]:
    """The best features of the first train photos that can be read."""
    left = PCA_PHOTOS
    bar = tqdm(total=left, desc="PCA", unit=" photos")
    for shard in mirror.stream("train", mirror.shard_names("train")):
        for identity in shard.ids[:left]:
            check_stop()
            try:
                photo = decode(shard.read(identity), recipe.local_size)
            except (OSError, UnreadablePhoto):
                continue  # the next command names it in skipped.csv
            yield delf.extract(model, photo, POINTS).descriptors
            left -= 1
            bar.update()
        if not left:
            break
    bar.close()
