"""The network: backbone, pooling, head; build, save, load. Written on `keras.ops`, so every back end runs it."""

if __name__ == "__main__":  # `python model.py export`: a door, gone through before Keras is imported
    from landmarks.neighbours import descriptor
    from landmarks.running import command

    command.run(descriptor.main)

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from landmarks.networks import hosts
from landmarks.networks.backbones import blocks, build_backbone, inner_maps, resolved
from landmarks.networks.devices import placed
from landmarks.networks.hub import is_foreign, require_sizes
from landmarks.networks.layers import CosineHead, GeM, Normalization, RandomCropFlip, RandomShear, unit
from landmarks.networks.saved import NAME, read_model
from landmarks.running.command import InputError
from landmarks.running.files import whole
from landmarks.running.settings import ModelSettings

TOP_CLASSES = 10  # of the head that a predictor tells: those that re-ranking by the head may choose among
POOLINGS = {
    "max": layers.GlobalMaxPooling2D,
    "average": layers.GlobalAveragePooling2D,
    "gem": GeM,
    "flatten": layers.Flatten,
    "token": layers.GlobalAveragePooling2D,  # the map is the class token alone
}


def build_model(classes: int, settings: ModelSettings, seed: int = 0) -> keras.Model:
    """(B, H, W, 3) uint8 RGB photos to what the loss takes; the layer "embedding" holds their (B, D) embeddings.

    That is for "softmax" the logits (B, classes), for "arcface" the cosines to the centres (B, classes), for
    "triplet" and "none", and "arcface" with sampled classes, the embeddings themselves; all float32.

    Raises:
        InputError: no such backbone, or its weights cannot be had.
    """
    keras.utils.set_random_seed(seed)
    keras.mixed_precision.set_global_policy(settings.precision)
    settings = resolved(settings)
    base, preprocess_input = build_backbone(settings)
    if settings.weights.endswith(".keras"):
        _take_weights(base, Path(settings.weights))
    is_pretrained = settings.weights != "none"
    for number, block in enumerate(blocks(base)):
        for layer in block._flatten_layers():
            normalises = isinstance(layer, layers.BatchNormalization)
            if number < settings.freeze or (settings.freeze_batch_norm and is_pretrained and normalises):
                layer.trainable = False
    side = settings.image_size if settings.pooling == "flatten" else None
    photos = keras.Input((side, side, 3), dtype="uint8", name="photos")
    x = RandomCropFlip(settings.crop_size, settings.flip, seed, settings.crop_area, name="augmentation")(photos)
    if settings.shear:
        x = RandomShear(settings.shear, settings.shear, fill_mode="nearest", seed=seed)(ops.cast(x, "float32"))
    if settings.zoom:
        x = layers.RandomZoom(settings.zoom, fill_mode="nearest", seed=seed)(ops.cast(x, "float32"))
    x = Normalization.like(preprocess_input, name="normalization")(x)
    x = base(x)
    size = settings.embedding_size
    pooling: dict[str, Any] = {"name": "pooling" if size else "embedding"}
    if settings.pooling == "gem" and is_foreign(settings.backbone):
        pooling["signed"] = True
    x = POOLINGS[settings.pooling](**pooling)(x)
    if size and settings.embedding_layer == "relu":
        x = layers.Dense(size, activation="relu", name="embedding")(x)
    elif size and settings.embedding_layer == "affine":
        x = layers.UnitNormalization(dtype="float32")(x)
        x = layers.Dense(size, dtype="float32", name="embedding")(x)
    elif size:
        x = layers.Dense(size, use_bias=False, name="projection")(x)
        x = layers.BatchNormalization(dtype="float32", name="embedding")(x)
    if settings.loss in ("triplet", "none"):
        return keras.Model(photos, layers.UnitNormalization(dtype="float32", name="unit")(x), name=NAME)
    x = layers.Dropout(settings.dropout, seed=seed)(x) if settings.dropout else x
    head = {
        "softmax": layers.Dense(classes, dtype="float32", name="landmark"),
        "arcface": CosineHead(
            classes, settings.subcentres, settings.head_parts, settings.sampled_classes, name="landmark"
        ),
    }
    return keras.Model(photos, head[settings.loss](x), name=NAME)


def learning_rates(model: keras.Model, decay: float) -> list[float]:
    """What the learning rate of each trained variable is multiplied by: `decay` once more at each block of a backbone.

    What follows the backbone learns at the full rate, and so does the normalisation that ends it.

    Source: Clark et al., "ELECTRA", ICLR 2020; Bao, Dong, Wei, "BEiT", ICLR 2022, for images.
    """
    rates: dict[int, float] = {}
    rate = 1.0
    for block in reversed(blocks(next(layer for layer in model.layers if isinstance(layer, keras.Model)))):
        if block.weights and not isinstance(block, layers.LayerNormalization | layers.BatchNormalization):
            rate *= decay
        rates |= {id(variable): rate for variable in block.variables}
    return [rates.get(id(variable), 1.0) for variable in model.trainable_variables]


def _take_weights(backbone: keras.Model, path: Path) -> None:
    """Give a backbone the weights that it has in a model of this project."""
    try:
        backbone.set_weights(load(path).get_layer(backbone.name).get_weights())
    except Exception as error:  # Keras' errors of many types, as another backbone is in it
        raise InputError(f"{path} does not hold weights of {backbone.name}: {str(error)[:300]}") from error


def predictor(
    model: keras.Model,
    mirrored: bool = False,
    sizes: Sequence[int] = (),
    scale_pooling: str = "mean",
    inner_layers: Sequence[str] = (),
) -> keras.Model:
    """(B, H, W, 3) photos to `embedding` (B, D) float32, L2-normalised, and the best classes of the head.

    `landmark` and `score`, (B,), are the class with the largest probability or cosine, int, and that value;
    `top_landmark` and `top_score`, (B, 10), the ten best, or all where there are fewer. A model without a head has only
    embeddings. With `mirrored`, embeddings and head are means over the photo and its mirror image.

    Args:
        sizes: sides at which each photo is seen, in pixels: it takes a list of photos, (B, size, size, 3) each. None:
            as they come, once.
        scale_pooling: how the L2-normalised embeddings of the sizes become one: "mean"; "gem", their generalized mean
            with p = 3, of negative ones too; or "side_by_side".
        inner_layers: layers of the backbone whose maps, averaged and L2-normalised, stand beside the embedding, which
            is longer by their channels and L2-normalised again.

    Raises:
        InputError: the backbone has no such layer, or none with a map, or does not take photos of these sizes.

    Source: Hariharan et al., "Hypercolumns for Object Segmentation and Fine-grained Localization", CVPR 2015, for
    what a net knows at several depths, side by side.
    """
    has_head = any(layer.name == "landmark" for layer in model.layers)
    output = model.output
    if has_head and getattr(model.get_layer("landmark"), "sampled", 1) < 1:
        output = model.get_layer("landmark")(model.get_layer("embedding").output, whole=True)
    elif has_head and _gives_logits(model.get_layer("landmark")):
        output = ops.softmax(output)
    both = keras.Model(model.input, [model.get_layer("embedding").output, *([output] if has_head else [])])
    if inner_layers:
        both = _with_inner_layers(both, inner_layers)
    for base in (layer for layer in model.layers if isinstance(layer, keras.Model)):
        require_sizes(base, sizes)
    shapes = [(size, size, 3) for size in sizes] or [model.input.shape[1:]]
    inputs = [keras.Input(shape, dtype=model.input.dtype) for shape in shapes]
    embeddings, heads = [], []
    for photos in inputs:
        views = [both(photos), both(ops.flip(photos, axis=2))] if mirrored else [both(photos)]
        embeddings.append(unit(sum(unit(embedding) for embedding, *_ in views)))
        heads += [scores for _, *head in views for scores in head]
    outputs = {"embedding": unit(POOL_SCALES[scale_pooling](embeddings))}
    if has_head:
        head = sum(heads) / len(heads)
        top_score, top_landmark = ops.top_k(head, min(TOP_CLASSES, head.shape[-1]))
        outputs |= {"landmark": top_landmark[:, 0], "score": top_score[:, 0]}
        outputs |= {"top_landmark": top_landmark, "top_score": top_score}
    return keras.Model(inputs if sizes else inputs[0], outputs)


def _with_inner_layers(both: keras.Model, names: Sequence[str]) -> keras.Model:
    """The model of embedding and head, if it has one, but that the means of inner maps stand beside the embedding."""
    number, base = next((i, layer) for i, layer in enumerate(both.layers) if isinstance(layer, keras.Model))
    before = both.layers[number - 1].output
    after = keras.Model(both.layers[number + 1].input, both.output)
    inner = keras.Model(base.input, [base.output, *inner_maps(base, names)])
    last, *maps = inner(before)
    embedding, *head = after(last)
    parts = [unit(embedding), *(unit(ops.mean(ops.cast(one, "float32"), axis=(1, 2))) for one in maps)]
    return keras.Model(both.input, [unit(ops.concatenate(parts, axis=-1)), *head])


def _generalized_mean(embeddings: list) -> keras.KerasTensor:
    cubes = sum(embedding**3 for embedding in embeddings) / len(embeddings)
    return ops.sign(cubes) * ops.abs(cubes) ** (1 / 3)


POOL_SCALES: dict[str, Callable[[list], keras.KerasTensor]] = {
    "mean": sum,
    "gem": _generalized_mean,
    "side_by_side": lambda embeddings: ops.concatenate(embeddings, axis=-1),
}


def _gives_logits(head: keras.Layer) -> bool:
    """Not so a `CosineHead`, nor the softmax that models had within their head before losses took logits."""
    return isinstance(head, layers.Dense) and head.activation is not keras.activations.softmax


def predict(
    predictor: keras.Model, photos: np.ndarray | Sequence[np.ndarray], batch_size: int
) -> dict[str, np.ndarray]:
    """What `predictor` says of at most `batch_size` photos, or of these at several sizes.

    A short batch is filled up, so that each has one shape.
    """
    given = [photos] if isinstance(photos, np.ndarray) else photos
    filled = [np.concatenate([some, np.zeros((batch_size - len(some), *some.shape[1:]), some.dtype)]) for some in given]
    on_device = [placed(some) for some in filled]
    taken = on_device[0] if isinstance(photos, np.ndarray) else on_device
    found = hosts.predict(predictor, taken) if hosts.count > 1 else predictor.predict_on_batch(taken)
    return {name: np.asarray(array)[: len(given[0])] for name, array in found.items()}


def classes(model: keras.Model) -> int:
    """How many landmarks the head of a model tells apart; 0: it has no head."""
    head = next((layer for layer in model.layers if layer.name == "landmark"), None)
    return head.units if isinstance(head, layers.Dense) else getattr(head, "classes", 0)


def save(model: keras.Model, path: Path) -> None:
    """Write `model`, without its optimizer, as a .keras file that appears only when it is whole."""
    with whole(path) as part:
        keras.Model(model.input, model.output, name=model.name).save(part)


def load(path: Path) -> keras.Model:
    """Load a .keras file of this project, with its optimizer's state, without running code from it.

    Raises InputError if it is none, holds variables that Keras would pass over with a warning, or needs KerasHub, which
    is not installed.
    """
    try:
        return read_model(path)
    except InputError:
        raise
    except Exception as error:  # a zip, JSON, HDF5 or Keras error, as the file is broken
        raise InputError(
            f"{path} is not a model of this project that loads ({str(error)[:300]}); delete it and run again"
        ) from error


def load_labels(path: Path) -> np.ndarray:
    """The landmark id of each class, (classes,) int64, from `labels.csv`. Raises InputError if it is malformed."""
    try:
        if b"\0" in path.read_bytes():  # which pandas before 3 passes over
            raise ValueError("it holds a NUL byte")
        table = pd.read_csv(path, dtype="int64")
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first cells of longer rows for one
            raise ValueError("its rows have more cells than its first line")
        if table["class"].tolist() != list(range(len(table))):
            raise ValueError("the classes are not 0, 1, 2, ...")
        return table["landmark_id"].to_numpy()
    except (ValueError, KeyError, OSError, OverflowError) as error:
        raise InputError(
            f"{path} is not the labels.csv of a model (class,landmark_id): {error}; bring back a copy, or delete "
            "model.keras beside it to train again"
        ) from error
