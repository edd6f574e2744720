"""The network: backbone, pooling, head; build, save, load. Written on `keras.ops`, so every back end runs it."""

import sys
import warnings
from difflib import get_close_matches
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from command import InputError
from efficientnet_lite import EfficientNetLite0
from files import whole

register = keras.saving.register_keras_serializable("landmarks")


@register
class RandomCropFlip(layers.Layer):
    """While training, a random square of each photo, mirrored in half of them; else the whole photo.

    (B, H, W, 3) uint8 to (B, crop, crop, 3) uint8, or unchanged. Every photo has a crop of its own, where
    keras.layers.RandomCrop takes one for the batch.

    Args:
        crop: side of the square in pixels; 0 for no crop.
        flip: whether to mirror.
    """

    def __init__(self, crop: int, flip: bool, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.crop, self.flip, self.seed = crop, flip, seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, photos, training=False):
        if not training:
            return photos
        batch, height, width = ops.shape(photos)[0], photos.shape[1] or ops.shape(photos)[1], ops.shape(photos)[2]
        side_y, side_x = (self.crop, self.crop) if self.crop else (height, width)
        top, left, mirror = (self._uniform(batch) for _ in range(3))
        rows = ops.arange(side_y)[None] + ops.cast(top * ops.cast(height - side_y + 1, "float32"), "int32")
        columns = ops.tile(ops.arange(side_x)[None], (batch, 1))
        if self.flip:
            columns = ops.where(mirror < 0.5, side_x - 1 - columns, columns)
        columns = columns + ops.cast(left * ops.cast(width - side_x + 1, "float32"), "int32")
        pixels = ops.reshape(rows[:, :, None] * width + columns[:, None, :], (batch, -1, 1))
        flat = ops.reshape(photos, (batch, -1, photos.shape[-1]))
        return ops.reshape(ops.take_along_axis(flat, pixels, axis=1), (batch, side_y, side_x, photos.shape[-1]))

    def _uniform(self, batch):
        return keras.random.uniform((batch, 1), seed=self.generator)

    def get_config(self):
        return {**super().get_config(), "crop": self.crop, "flip": self.flip, "seed": self.seed}


@register
class RandomShear(layers.RandomShear):
    """Keras' own, which cannot load the settings that it saves (https://github.com/keras-team/keras/issues/21110)."""

    def get_config(self):
        return {**super().get_config(), "x_factor": self.x_factor[1], "y_factor": self.y_factor[1]}


@register
class Normalization(layers.Layer):
    """The input that a backbone was pretrained on: `scale` * RGB (or BGR) in 0..255 + `offset`, per channel."""

    def __init__(self, scale: list[float], offset: list[float], bgr: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.scale, self.offset, self.bgr = scale, offset, bgr

    @classmethod
    def like(cls, preprocess_input, **kwargs) -> "Normalization":
        """The layer that does what a `preprocess_input` of keras.applications does; they are all affine."""
        black, white, red = (preprocess_input(np.array([[[color]]], "float32"))[0, 0, 0] for color in (
            [0, 0, 0], [255, 255, 255], [255, 0, 0],
        ))  # fmt: skip
        scale = (white - black) / 255
        return cls(scale.tolist(), black.tolist(), bgr=bool(red[0] == black[0]), **kwargs)

    def call(self, photos):
        photos = ops.cast(photos, "float32")
        if self.bgr:
            photos = ops.flip(photos, axis=-1)
        photos = photos * ops.array(self.scale, "float32") + ops.array(self.offset, "float32")
        return ops.cast(photos, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale, "offset": self.offset, "bgr": self.bgr}


@register
class GeM(layers.Layer):
    """Generalized-mean pooling with a learned power: (B, H, W, C) to (B, C) float32.

    p = 1 is the average, p to infinity the maximum. Computed in float32, since a cube overflows float16.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.
    """

    def __init__(self, p: float = 3.0, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.initial_p = p

    def build(self, _shape):
        self.p = self.add_weight(name="p", shape=(), initializer=keras.initializers.Constant(self.initial_p))

    def call(self, features):
        features = ops.maximum(ops.cast(features, "float32"), 1e-6)
        return ops.mean(features**self.p, axis=(1, 2)) ** (1.0 / self.p)

    def get_config(self):
        return {**super().get_config(), "p": self.initial_p}


@register
class CosineHead(layers.Layer):
    """Cosines between embeddings and the centres of each class: (B, D) to (B, classes) float32, the nearest centre's.

    Several centres leave room for the different sides of a landmark, and for wrong labels. Memory while training, with
    D = 512, 3 centres, Adam, batches of 64: 40 KB a class, 6.5 times its weights, since the normalised centres and both
    gradients come beside Adam's moments: 3.2 GB for 81,313 classes, 8.1 GB for 203,094 (benchmarks/head_memory.py).

    Source: Deng et al., "Sub-center ArcFace", ECCV 2020.
    """

    def __init__(self, classes: int, centres: int, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.classes, self.centres = classes, centres

    def build(self, shape):
        self.kernel = self.add_weight(
            name="kernel", shape=(shape[-1], self.centres * self.classes), initializer="lecun_normal"
        )

    def call(self, embedding):
        cosines = ops.matmul(unit(embedding), ops.normalize(self.kernel, axis=0, epsilon=1e-20))
        return ops.max(ops.reshape(cosines, (-1, self.centres, self.classes)), axis=1)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes, "centres": self.centres}


SETTINGS = (  # those of a recipe that `build_model` takes
    "backbone", "weights", "image_size", "pooling", "embedding_size", "embedding_layer", "loss", "subcentres",
    "crop_size", "flip", "shear", "zoom", "dropout", "freeze", "freeze_batch_norm", "precision", "seed",
)  # fmt: skip
TOP_CLASSES = 10  # of the head that a predictor tells: those that re-ranking by the head may choose among
POOLINGS = {
    "max": layers.GlobalMaxPooling2D,
    "average": layers.GlobalAveragePooling2D,
    "gem": GeM,
    "flatten": layers.Flatten,
}


def build_model(
    classes: int,
    backbone: str = "EfficientNetLite0",
    weights: str = "imagenet",
    image_size: int = 256,
    pooling: str = "gem",
    embedding_size: int = 0,
    embedding_layer: str = "batch_norm",
    loss: str = "softmax",
    subcentres: int = 3,
    crop_size: int = 0,
    flip: bool = True,
    shear: float = 0.0,
    zoom: float = 0.0,
    dropout: float = 0.0,
    freeze: int = 0,
    freeze_batch_norm: bool = False,
    precision: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """(B, H, W, 3) uint8 RGB photos to what the `loss` takes; the layer "embedding" holds their (B, D) embeddings.

    That is for "softmax" the logits (B, classes), for "arcface" the cosines to the centres (B, classes), for
    "triplet" the embeddings themselves; all float32. Arguments as the settings of the same names (`settings.Recipe`).

    Raises:
        InputError: no such backbone, or its weights cannot be had.
    """
    keras.utils.set_random_seed(seed)
    keras.mixed_precision.set_global_policy(precision)
    base, preprocess_input = _build_backbone(backbone, weights)
    for number, layer in enumerate(base.layers):
        if number < freeze or (
            freeze_batch_norm and weights != "none" and isinstance(layer, layers.BatchNormalization)
        ):
            layer.trainable = False
    side = image_size if pooling == "flatten" else None
    photos = keras.Input((side, side, 3), dtype="uint8", name="photos")
    x = RandomCropFlip(crop_size, flip, seed, name="augmentation")(photos)
    if shear:
        x = RandomShear(shear, shear, fill_mode="nearest", seed=seed)(ops.cast(x, "float32"))
    if zoom:
        x = layers.RandomZoom(zoom, fill_mode="nearest", seed=seed)(ops.cast(x, "float32"))
    x = Normalization.like(preprocess_input, name="normalization")(x)
    x = base(x)
    x = POOLINGS[pooling](name="pooling" if embedding_size else "embedding")(x)
    if embedding_size and embedding_layer == "relu":
        x = layers.Dense(embedding_size, activation="relu", name="embedding")(x)
    elif embedding_size:
        x = layers.Dense(embedding_size, use_bias=False, name="projection")(x)
        x = layers.BatchNormalization(dtype="float32", name="embedding")(x)
    if loss == "triplet":
        return keras.Model(photos, layers.UnitNormalization(dtype="float32", name="unit")(x), name="recognition")
    x = layers.Dropout(dropout, seed=seed)(x) if dropout else x
    head = {
        "softmax": layers.Dense(classes, dtype="float32", name="landmark"),
        "arcface": CosineHead(classes, subcentres, name="landmark"),
    }
    return keras.Model(photos, head[loss](x), name="recognition")


def predictor(model: keras.Model, mirrored: bool = False) -> keras.Model:
    """(B, H, W, 3) photos to `embedding` (B, D) float32, L2-normalised, and the best classes of the head.

    `landmark` and `score`, (B,), are the class with the largest probability or cosine, int, and that value;
    `top_landmark` and `top_score`, (B, 10), the ten best, or all where there are fewer. A model without a head has only
    embeddings. With `mirrored`, embeddings and head are means over the photo and its mirror image.
    """
    has_head = any(layer.name == "landmark" for layer in model.layers)
    output = model.output
    if has_head and _gives_logits(model.get_layer("landmark")):
        output = ops.softmax(output)
    both = keras.Model(model.input, [model.get_layer("embedding").output, output])
    photos = keras.Input(model.input.shape[1:], dtype=model.input.dtype)
    views = [both(photos), both(ops.flip(photos, axis=2))] if mirrored else [both(photos)]
    outputs = {"embedding": unit(sum(unit(embedding) for embedding, _ in views))}
    if has_head:
        head = sum(scores for _, scores in views) / len(views)
        top_score, top_landmark = ops.top_k(head, min(TOP_CLASSES, head.shape[-1]))
        outputs |= {"landmark": ops.argmax(head, axis=-1), "score": ops.max(head, axis=-1)}
        outputs |= {"top_landmark": top_landmark, "top_score": top_score}
    return keras.Model(photos, outputs)


def _gives_logits(head: keras.Layer) -> bool:
    """Not so a `CosineHead`, nor the softmax that models had within their head before losses took logits."""
    return isinstance(head, layers.Dense) and head.activation is not keras.activations.softmax


def unit(embedding):
    """L2-normalised float32 embeddings, (B, D)."""
    # Keras' own epsilon of 1e-7 would leave the small activations of a poorly trained net short.
    return ops.normalize(ops.cast(embedding, "float32"), axis=-1, epsilon=1e-20)


def predict(predictor: keras.Model, photos: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
    """What `predictor` says of at most `batch_size` photos; a short batch is filled up, so that each has one shape."""
    filled = np.concatenate([photos, np.zeros((batch_size - len(photos), *photos.shape[1:]), photos.dtype)])
    return {name: np.asarray(array)[: len(photos)] for name, array in predictor.predict_on_batch(filled).items()}


def save(model: keras.Model, path: Path) -> None:
    """Write `model`, without its optimizer, as a .keras file that appears only when it is whole."""
    with whole(path) as part:
        keras.Model(model.input, model.output, name=model.name).save(part)


def load(path: Path) -> keras.Model:
    """Load a .keras file of this project, with its optimizer's state, without running code from it.

    Raises InputError if it is none, or holds variables that Keras would pass over with a warning.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Skipping variable loading|.*could not be loaded")
            return keras.saving.load_model(path, safe_mode=True)
    except Exception as error:  # a zip, JSON, HDF5 or Keras error, as the file is broken
        raise InputError(
            f"{path} is not a model of this project that loads ({str(error)[:300]}); delete it and run again"
        ) from error


def load_labels(path: Path) -> np.ndarray:
    """The landmark id of each class, (classes,) int64, from `labels.csv`. Raises InputError if it is malformed."""
    try:
        table = pd.read_csv(path, dtype="int64")
        if table["class"].tolist() != list(range(len(table))):
            raise ValueError("the classes are not 0, 1, 2, ...")
        return table["landmark_id"].to_numpy()
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{path} is not the labels.csv of a model (class,landmark_id): {error}") from error


def _build_backbone(name: str, weights: str):
    """The backbone without its head, and its module's `preprocess_input`."""
    applications = [name for name in dir(keras.applications) if name[0].isupper()]
    if name == "EfficientNetLite0":
        build = EfficientNetLite0
    elif name in applications:
        build = getattr(keras.applications, name)
    else:
        close = get_close_matches(name, ["EfficientNetLite0", *applications], n=3, cutoff=0.3)
        raise InputError(f"backbone {name!r} is not in keras.applications; did you mean {' or '.join(close)}?")
    source = None if weights == "none" else weights
    is_file = source not in (None, "imagenet")
    if is_file and not Path(source).is_file():
        raise InputError(f"weights {source!r} is neither imagenet, none, nor a file")
    try:
        base = build(include_top=False, weights=None if is_file else source, input_shape=(None, None, 3))
    except InputError:
        raise
    except Exception as error:  # keras.utils.get_file raises a bare Exception when the download fails
        raise InputError(
            f"backbone {name} with weights {weights} cannot be built ({str(error)[:200]}); without network give "
            "--weights FILE (a .h5 from the Keras applications site) or --weights none"
        ) from error
    if is_file:
        _load_backbone(base, Path(source))
    return base, sys.modules[build.__module__].preprocess_input


def _load_backbone(base: keras.Model, path: Path) -> None:
    try:
        if path.suffix == ".keras":
            base.set_weights(load(path).get_layer(base.name).get_weights())
        else:
            base.load_weights(path)
    except Exception as error:  # HDF5 and Keras errors of many types
        raise InputError(f"{path} does not hold weights of {base.name}: {str(error)[:300]}") from error
