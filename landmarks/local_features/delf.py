"""DELF: local features of a photo, the best of a pyramid of dense features from a backbone's stride-16 stage.

Noh et al., "Large-Scale Image Retrieval with Attentive Deep Local Features", ICCV 2017, and its release,
https://github.com/tensorflow/models/tree/master/research/delf. `delf_training.py` makes the model. Until its attention
is trained, the norm of the features stands in for it, as in Tolias, Jenicek, Chum, "Learning and Aggregating Deep Local
Descriptors for Instance-Level Recognition", ECCV 2020.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops
from PIL import Image

import model as models
from landmarks.local_features.points import SCALES, Extractor, LocalFeatures
from landmarks.networks.backbones import build_backbone
from landmarks.networks.devices import accelerated
from landmarks.networks.engines import Call, Compiled
from landmarks.networks.layers import Normalization, register
from landmarks.running.command import InputError
from landmarks.running.settings import ModelSettings
from landmarks.running.threads import in_threads

FILE = "delf.keras"  # in a work folder: features, attention and PCA in one model
STRIDE = 16
MULTIPLE = 64  # levels are filled up to sides of a multiple of this, so that few shapes are compiled
PIXELS = {"CPU": 2**18, "accelerator": 2**24}  # of the levels that go through the network at once


@register
class FeatureNorm(layers.Layer):
    """The norm of each feature in place of an attention: (B, H, W, C) to (B, H, W, 1)."""

    def call(self, features):
        return ops.sqrt(ops.sum(ops.square(features), axis=-1, keepdims=True))


def attention_head() -> keras.Sequential:
    """The attention to train: (B, H, W, C) features to (B, H, W, 1) scores above 0."""
    convolutions = [
        layers.Conv2D(512, 1, activation="relu", dtype="float32"),
        layers.Conv2D(1, 1, activation="softplus", dtype="float32"),
    ]
    return keras.Sequential(convolutions, name="attention")


def stride_16_features(backbone: keras.Model) -> keras.Model:
    """The backbone up to the end of its stride-16 stage, frozen, as a model named "features".

    The end is the last layer with as many channels as the stage's last residual sum: ResNet50's conv4_block6_out,
    EfficientNetLite0's blocks_10_add. What the next block widens is left out: its 672 channels told pairs of photos
    apart less well than the 112 before them, AUC of the inlier count 0.76 against 0.81.

    Raises:
        InputError: the backbone has no such stage, as those without padding: InceptionV3.
    """
    side = 32 * STRIDE
    every = keras.Model(backbone.input, [layer.output for layer in backbone.layers])
    shapes = [output.shape for output in every.compute_output_spec(keras.KerasTensor((1, side, side, 3)))]
    stage = [
        (layer, shape[-1])
        for layer, shape in zip(backbone.layers, shapes, strict=True)
        if shape[1:-1] == (side // STRIDE, side // STRIDE)
    ]
    if not stage:
        raise InputError(f"{backbone.name} has no stage with a stride of {STRIDE} pixels, which DELF needs")
    sums = [channels for layer, channels in stage if isinstance(layer, layers.Add)]
    end = [layer for layer, channels in stage if not sums or channels == sums[-1]][-1]
    features = keras.Model(backbone.input, end.output, name="features")
    features.trainable = False
    return features


def untrained() -> keras.Model:
    """DELF without training: the ImageNet features of EfficientNet-Lite0, their norm as attention, and no PCA.

    Raises InputError if the package with the weights is not installed.
    """
    backbone, preprocess_input = build_backbone(ModelSettings(backbone="EfficientNetLite0", weights="imagenet"))
    return build(Normalization.like(preprocess_input), stride_16_features(backbone), FeatureNorm())


def build(normalization: keras.Layer, features: keras.Model, attention: keras.Layer) -> keras.Model:
    """(B, H, W, 3) uint8 photos to `descriptors` (B, h, w, C), L2-normalised, and `scores` (B, h, w, 1)."""
    photos = keras.Input((None, None, 3), dtype="uint8", name="photos")
    maps = features(normalization(photos), training=False)
    descriptors = layers.UnitNormalization(dtype="float32")(maps)
    return keras.Model(photos, {"descriptors": descriptors, "scores": attention(maps)}, name="delf")


def with_pca(delf: keras.Model, mean: np.ndarray, axes: np.ndarray) -> keras.Model:
    """The same model with `descriptors` (B, h, w, D): less `mean` (C,), times `axes` (C, D), L2-normalised again."""
    pca = layers.Dense(axes.shape[1], dtype="float32", name="pca")
    descriptors = layers.UnitNormalization(dtype="float32")(pca(delf.output["descriptors"]))
    pca.set_weights([axes, -mean @ axes])
    return keras.Model(delf.input, {"descriptors": descriptors, "scores": delf.output["scores"]}, name="delf")


def open_extractor(folder: Path, points: int = 1000) -> Extractor:
    """The extractor in a work folder: photos (H, W, 3) uint8 to their features, at most `points`, the best first.

    Raises:
        InputError: the folder has no DELF model, or it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        raise InputError(f"there is no {path}; give a work folder in which DELF was trained")
    delf = models.load(path)
    if not isinstance(delf.output, dict) or set(delf.output) != {"descriptors", "scores"}:
        raise InputError(f"{path} is a model, but not one of DELF; delete it and train DELF again")
    return extractor(delf, points)


def extractor(delf: keras.Model, points: int) -> Extractor:
    """The extractor of a DELF, whose weights have to stay as they are."""
    return partial(extract, Compiled(delf), points=points)


def extract(delf: Call, photos: Sequence[np.ndarray], points: int) -> list[LocalFeatures]:
    """The `points` cells of all levels of the pyramid that have the best scores; each is at its cell's centre.

    Levels that are filled up to one shape go through the network together, and its results are waited for when all are
    on their way. A photo takes a moment's memory for its largest level, twice its size: 200 MB at 640 px with
    EfficientNet-Lite0; so many levels take part as `PIXELS` allows.
    """
    found: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in photos]
    for rows, sides, maps in [
        (rows, sides, delf([filled]))
        for scale in SCALES
        for rows, sides, filled in _together(list(in_threads(partial(level, scale=scale), photos, len(photos))))
    ]:
        descriptors, scores = (ops.convert_to_numpy(maps[name]) for name in ("descriptors", "scores"))
        for number, (row, (width, height)) in enumerate(zip(rows, sides, strict=True)):
            # A network that learnt from mirrored photos too sees its cell i centred at 16 i + 7.5, whatever its
            # padding: EfficientNet-Lite0's features of mirrored photos match at 7.6, those of twice the size at 9.0.
            x, y = (np.arange(STRIDE / 2, side, STRIDE) for side in (width, height))
            whole_height, whole_width = photos[row].shape[:2]
            grid = np.stack(np.meshgrid(x * whole_width / width, y * whole_height / height), axis=-1) - 0.5
            inside = (number, slice(len(y)), slice(len(x)))
            found[row].append(
                (grid.reshape(-1, 2), descriptors[inside].reshape(-1, descriptors.shape[-1]), scores[inside].ravel())
            )
    return [_best(points, *map(np.concatenate, zip(*levels, strict=True))) for levels in found]


def _together(levels: list[np.ndarray]) -> Iterator[tuple[list[int], list[tuple[int, int]], np.ndarray]]:
    """Levels (H, W, 3) of photos by shape, filled up: the photos' rows, widths and heights, and (B, h, w, 3) of all.

    B is a power of two, since back ends may compile anew for each.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for row, shown in enumerate(levels):
        height, width = (-(-side // MULTIPLE) * MULTIPLE for side in shown.shape[:2])
        by_shape.setdefault((height, width), []).append(row)
    most = PIXELS["accelerator" if accelerated() else "CPU"]
    for (height, width), rows in by_shape.items():
        while rows:
            count = 1 << (min(len(rows), max(1, most // (height * width))).bit_length() - 1)
            those, rows = rows[:count], rows[count:]
            sides = [levels[row].shape[1::-1] for row in those]
            yield those, sides, np.stack([fill(levels[row], width, height) for row in those])


def _best(points: int, centres: np.ndarray, descriptors: np.ndarray, scores: np.ndarray) -> LocalFeatures:
    best = np.argsort(-scores, kind="stable")[:points]
    return LocalFeatures(centres[best].astype(np.float32), descriptors[best])


def level(photo: np.ndarray, scale: float) -> np.ndarray:
    """A photo (H, W, 3) uint8 at a scale of the pyramid."""
    sides = [max(1, round(side * scale)) for side in photo.shape[1::-1]]
    return np.asarray(Image.fromarray(photo).resize(sides, Image.Resampling.BICUBIC))


def fill(photo: np.ndarray, width: int, height: int) -> np.ndarray:
    """A photo (H, W, C), filled up to the right and below with its last pixels."""
    return np.pad(photo, [(0, height - photo.shape[0]), (0, width - photo.shape[1]), (0, 0)], mode="edge")
