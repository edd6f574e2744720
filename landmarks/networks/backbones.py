"""Backbones by name, with their first weights: those of keras.applications, and EfficientNet-Lite0."""

import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import keras

from landmarks.networks.efficientnet_lite import EfficientNetLite0
from landmarks.running.command import InputError


def find_backbone(name: str) -> Callable[..., keras.Model]:
    """What builds a backbone of this name. Raises InputError if there is none."""
    applications = [name for name in dir(keras.applications) if name[0].isupper()]
    if name == "EfficientNetLite0":
        return EfficientNetLite0
    if name in applications:
        return getattr(keras.applications, name)
    close = get_close_matches(name, ["EfficientNetLite0", *applications], n=3, cutoff=0.3)
    raise InputError(f"backbone {name!r} is not in keras.applications; did you mean {' or '.join(close)}?")


def build_backbone(name: str, weights: str) -> tuple[keras.Model, Callable]:
    """A backbone without its head, (B, H, W, 3) to (B, h, w, C), and the `preprocess_input` that its photos need.

    Args:
        name: EfficientNetLite0 or any model of keras.applications.
        weights: imagenet, none, or a file: .h5 or .weights.h5. A .keras must be there, but is left to the caller.

    Raises:
        InputError: there is no such backbone, or its weights cannot be had.
    """
    build = find_backbone(name)
    is_file = weights not in ("none", "imagenet")
    if is_file and not Path(weights).is_file():
        raise InputError(f"weights {weights!r} is neither imagenet, none, nor a file")
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
            base.load_weights(weights)
        except Exception as error:  # HDF5 and Keras errors of many types
            raise InputError(f"{weights} does not hold weights of {base.name}: {str(error)[:300]}") from error
    return base, sys.modules[build.__module__].preprocess_input
