"""Backbones of others: presets of KerasHub, from a hub or a folder, and anyone's .keras file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from landmarks.networks.frozen import is_frozen
from landmarks.networks.presets import CHAINS, PresetBackbone
from landmarks.networks.saved import read_model, require_keras_hub
from landmarks.running.command import InputError
from landmarks.running.command_line import suggestion


def is_preset(name: str) -> bool:
    """Whether a backbone of this name is a preset: hub:PRESET or hf:USER/MODEL."""
    return name.startswith(("hub:", "hf:"))


def is_foreign(name: str) -> bool:
    """Whether a backbone of this name is of others: a preset, or a file."""
    return is_preset(name) or name.endswith(".keras") or is_frozen(name)


def preset_backbone(name: str, weights: str, token: bool) -> tuple[keras.Model, Callable]:
    """A preset's backbone, photos (B, H, W, 3) to its map (B, h, w, C), and what normalises its photos.

    Args:
        name: hub:PRESET, where PRESET is what `keras_hub.models.Backbone.from_preset` takes: a name, kaggle://...,
            hf://..., or a folder; hf:USER/MODEL is short for hub:hf://USER/MODEL.
        weights: imagenet for the preset's own, none, or a file: .weights.h5. A .keras is left to the caller.
        token: give the class token as a map of one place, (B, 1, 1, C), in place of the map of the patches.

    Raises:
        InputError: KerasHub is not installed, the preset cannot be had, or is none of a backbone for photos.
    """
    require_keras_hub()
    preset = name.removeprefix("hub:") if name.startswith("hub:") else f"hf://{name.removeprefix('hf:')}"
    backbone, scale, offset = _from_preset(preset, weights == "imagenet")
    if weights.endswith(".h5"):
        try:
            backbone.load_weights(weights)
        except Exception as error:  # HDF5 and Keras errors of many types
            raise InputError(f"{weights} does not hold weights of {preset}: {str(error)[:300]}") from error
    if token and not CHAINS.get(type(backbone).__name__):
        raise InputError(f"{preset} has no class token: --pooling average, gem or max")
    photos = keras.Input((None, None, 3))
    base = keras.Model(photos, PresetBackbone(backbone, token, name="preset")(photos), name=type(backbone).__name__)
    return base, lambda x: x * scale + offset


def _from_preset(preset: str, with_weights: bool) -> tuple[keras.Model, Any, Any]:
    """The backbone of a preset, at the size of its positions where it has some, and its scale and offset of photos."""
    import keras_hub

    def load(**shape: Any) -> keras.Model:
        backbone = keras_hub.models.Backbone.from_preset(preset, load_weights=with_weights, **shape)
        return getattr(backbone, "vision_encoder", backbone)  # SigLIP's and CLIP's, of which the text is left

    try:
        backbone = load()
        kind, inputs = type(backbone).__name__, keras.tree.flatten(backbone.input)
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise InputError(f"{preset} is a {kind}, which takes no photos: name an image backbone")
        shape: dict[str, Any] = {}
        if positions := getattr(backbone, "position_embedding_shape", None):
            shape = {"image_shape": (*positions[:2], 3)}
        elif kind not in CHAINS:
            shape = {"image_shape": (None, None, 3)}
        if getattr(backbone, "data_format", "channels_last") != "channels_last":
            shape["data_format"] = "channels_last"
        if "data_format" in shape or shape and inputs[0].shape[1:] != shape["image_shape"]:
            backbone = load(**shape)
        if kind not in CHAINS and any(len(output.shape) != 4 for output in keras.tree.flatten(backbone.output)):
            raise InputError(f"{preset} is a {kind}, which gives no feature map: name another image backbone")
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except InputError:
        raise
    except Exception as error:  # of KerasHub, its hubs' clients, HTTP and Keras
        raise InputError(_why_not(preset, error)) from error
    scale = 1.0 if converter.scale is None else np.asarray(converter.scale)
    return backbone, scale, 0.0 if converter.offset is None else np.asarray(converter.offset)


def file_backbone(path: Path) -> keras.Model:
    """Anyone's model in a .keras file that maps photos (B, H, W, 3), RGB of 0 to 255, to a feature map or a vector.

    A vector becomes a map of one place, (B, 1, 1, C).

    Raises:
        InputError: it does not load, or does not map photos to one of these.
    """
    try:
        model = read_model(path)
        shapes = [tensor.shape for tensor in keras.tree.flatten([model.input, model.output])]
    except InputError:
        raise
    except Exception as error:  # a zip, JSON, HDF5 or Keras error, or there is no file
        raise InputError(f"backbone {path} is not a .keras file of a model that loads ({str(error)[:300]})") from error
    if len(shapes) != 2 or len(shapes[0]) != 4 or shapes[0][-1] != 3 or len(shapes[1]) not in (2, 4):
        told = " and ".join(map(str, shapes))
        raise InputError(f"backbone {path} does not map photos (B, H, W, 3) to a map or a vector: it has {told}")
    output = model.output if len(shapes[1]) == 4 else layers.Reshape((1, 1, shapes[1][-1]))(model.output)
    return keras.Model(model.input, output, name="file")


def require_size(base: keras.Model, image_size: int, crop_size: int) -> None:
    """Raise InputError unless a backbone of others takes photos of this size, and crops (0: none)."""
    preset = next((layer for layer in base.layers if isinstance(layer, PresetBackbone)), None)
    if preset and preset.is_transformer and image_size % preset.patch:
        less = image_size // preset.patch * preset.patch
        sizes = f"{less} or {less + preset.patch}" if less else str(preset.patch)
        raise InputError(f"--image-size {image_size} does not fit patches of {preset.patch} px: {sizes} does")
    require_sizes(base, [image_size, *([crop_size] if crop_size else [])])


def require_sizes(base: keras.Model, sizes: Sequence[int]) -> None:
    """Raise InputError unless a backbone takes squares of each of these sides, in pixels."""
    height, width = keras.tree.flatten(base.input)[0].shape[1:3]
    if any({height, width} - {None, size} for size in sizes):
        raise InputError(
            f"the backbone takes photos of {height} x {width} px alone: --image-size {height} --crop 1 --scales 1"
        )


def _why_not(preset: str, error: Exception) -> str:
    """One line on what to do where a preset cannot be had."""
    import keras_hub

    presets = keras_hub.models.Backbone.presets
    reason = " ".join(str(error).split())[:200]
    if Path(preset).is_dir():
        return f"{preset} is no folder of a KerasHub preset that loads ({reason})"
    if "://" not in preset and preset not in presets:
        return f"preset {preset!r} is neither a folder nor one of KerasHub's{suggestion(preset, presets, 3, 0.3)}"
    handle = presets.get(preset, {}).get("kaggle_handle", preset)
    attach = f"; on Kaggle attach {handle}" if handle.startswith("kaggle://") else ""
    return (
        f"preset {preset} cannot be had ({type(error).__name__}: {reason}); without network bring its folder "
        f"(config.json, image_converter.json, model.weights.h5{attach}) and give it as hub:FOLDER"
    )
