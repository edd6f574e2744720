"""Backbones by name, with their first weights: keras.applications, EfficientNet-Lite0, and those of others."""

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

import keras
import numpy as np

from landmarks.networks import hub, saved
from landmarks.networks.efficientnet_lite import EfficientNetLite0
from landmarks.networks.frozen import frozen_backbone, is_frozen
from landmarks.networks.onnx_file import IMAGENET_MEAN, IMAGENET_STD
from landmarks.networks.presets import PresetBackbone
from landmarks.running.command import InputError
from landmarks.running.command_line import suggestion
from landmarks.running.settings import ModelSettings

ANY_TAKES = 75  # pixels: InceptionV3's least, the largest of those in keras.applications


def find_backbone(name: str) -> Callable[..., keras.Model]:
    """What builds a backbone of this name. Raises InputError if there is none."""
    applications = [name for name in dir(keras.applications) if name[0].isupper()]
    if name == "EfficientNetLite0":
        return EfficientNetLite0
    if name in applications:
        return getattr(keras.applications, name)
    meant = suggestion(name, ["EfficientNetLite0", *applications], 3, 0.3)
    raise InputError(f"backbone {name!r} is not in keras.applications{meant}")


def resolved(settings: ModelSettings) -> ModelSettings:
    """The settings with a whole network that `weights` names as the backbone: --weights FILE is short for it then.

    That is an ONNX file, a SavedModel, or a .keras file that no run of this project has made.
    """
    weights = Path(settings.weights)
    if is_frozen(settings.weights) or (weights.suffix == ".keras" and weights.is_file() and not saved.is_ours(weights)):
        return settings.model_copy(update={"backbone": settings.weights, "weights": "imagenet"})
    return settings


def check(settings: ModelSettings, sizes: Sequence[int] = (), inner_layers: Sequence[str] = ()) -> None:
    """Raise InputError where `build_backbone` would, without the time that Keras takes for random weights.

    Args:
        sizes: sides at which photos are to be embedded, in pixels.
        inner_layers: as `inner_maps` takes them.
    """
    settings = resolved(settings)
    smallest = min(settings.image_size, settings.crop_size or settings.image_size, *sizes)
    may_be_too_small = smallest < ANY_TAKES and not hub.is_foreign(settings.backbone)
    if settings.weights == "none" and not hub.is_foreign(settings.backbone) and not (inner_layers or may_be_too_small):
        find_backbone(settings.backbone)
        return
    base, _ = build_backbone(settings)
    hub.require_sizes(base, sizes)
    inner_maps(base, inner_layers)
    if may_be_too_small:
        try:
            base.compute_output_shape((None, smallest, smallest, 3))
        except ValueError as error:
            raise InputError(
                f"photos of {smallest} px are too small for {base.name}: a larger --image-size, or --scales and --crop "
                "nearer to 1"
            ) from error


def inner_maps(base: keras.Model, names: Sequence[str]) -> list[keras.KerasTensor]:
    """The maps, (B, h, w, C), of layers of a backbone. Raises InputError for one that is not there or has none."""
    maps = {layer.name: layer.output for layer in base.layers if _is_map(getattr(layer, "output", None))}
    for name in names:
        if name not in maps:
            close = get_close_matches(name, maps, n=3, cutoff=0.3) or list(maps)[-3:]
            meant = f"did you mean {' or '.join(close)}? [] is for none"
            raise InputError(f"--inner-layers: {base.name} has no layer {name} with a map; {meant}")
    return [maps[name] for name in names]


def _is_map(output: object) -> bool:
    return isinstance(output, keras.KerasTensor) and len(output.shape) == 4


def build_backbone(settings: ModelSettings) -> tuple[keras.Model, Callable]:
    """A backbone without its head, (B, H, W, 3) to (B, h, w, C), and the `preprocess_input` that its photos need.

    With the pooling "token" the map is the class token alone, (B, 1, 1, C). Weights in a .keras file must be there, but
    are left to the caller.

    Args:
        settings: as `resolved` gives them.

    Raises:
        InputError: there is no such backbone, its weights cannot be had, it cannot be trained although there is a loss,
            or photos of this size do not suit it.
    """
    name, weights, token = settings.backbone, settings.weights, settings.pooling == "token"
    is_file = weights not in ("none", "imagenet")
    if is_file and not Path(weights).is_file():
        raise InputError(f"weights {weights!r} is neither imagenet, none, nor a file")
    if token and not hub.is_preset(name):
        raise InputError(f"backbone {name} has no class token: --pooling average, gem or max")
    if hub.is_foreign(name):
        if hub.is_preset(name):
            base, preprocess_input = hub.preset_backbone(name, weights, token)
        elif is_frozen(name):
            if settings.loss != "none":
                raise InputError(
                    f"backbone {name} is frozen, nothing in it can be trained, and --loss is {settings.loss}: "
                    "--loss none, as in --recipe small-frozen"
                )
            base, preprocess_input = frozen_backbone(Path(name), settings.image_size), _as_they_are
        else:
            base, preprocess_input = hub.file_backbone(Path(name)), _as_they_are
        hub.require_size(base, settings.image_size, settings.crop_size)
        return base, preprocess_input
    build = find_backbone(name)
    try:
        base = build(include_top=False, weights=weights if weights == "imagenet" else None, input_shape=(None, None, 3))
    except InputError:
        raise
    except Exception as error:  # keras.utils.get_file raises a bare Exception when the download fails
        raise InputError(
            f"backbone {name} with weights {weights} cannot be built ({str(error)[:200]}); without network give "
            "--weights FILE (a .h5 from the Keras applications site) or --weights none"
        ) from error
    if is_file and not weights.endswith(".keras"):
        try:
            _load_weights(base, build, weights)
        except Exception as error:  # HDF5 and Keras errors of many types
            raise InputError(f"{weights} does not hold weights of {base.name}: {str(error)[:300]}") from error
    return base, sys.modules[build.__module__].preprocess_input


def _load_weights(base: keras.Model, build: Callable[..., keras.Model], path: str) -> None:
    """Give a backbone the weights in a file, with a head or without; raises what Keras does if it has others."""
    try:
        base.load_weights(path)
    except Exception as error:
        try:
            whole = build(include_top=True, weights=None)
            whole.load_weights(path)
        except Exception:  # the first one tells of the backbone that is wanted
            raise error from None
        base.set_weights(whole.get_weights()[: len(base.weights)])
    for layer in base.layers:
        # With its ImageNet weights Keras builds an EfficientNet that divides by the roots of the deviations once more.
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            mean, variance, *count = layer.get_weights()
            if np.allclose(mean, IMAGENET_MEAN, atol=1e-3):
                layer.set_weights([mean, variance * IMAGENET_STD, *count])
                layer.finalize_state()


def blocks(base: keras.Model) -> list[keras.Layer]:
    """The layers of a backbone from the photos on: of a KerasHub transformer the patch embedding and each block."""
    preset = next((layer for layer in base.layers if isinstance(layer, PresetBackbone)), None)
    return preset.blocks() if preset else base.layers


def _as_they_are(photos):
    return photos
