"""A .keras file, read without running code from it."""

import json
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import keras

from landmarks.running.command import InputError
from landmarks.running.files import require_stored

NAME = "recognition"  # of the models of this project


def require_keras_hub() -> None:
    """Know the classes of KerasHub. Raises InputError where it is not installed."""
    try:
        import keras_hub  # noqa: F401
    except ImportError as error:
        raise InputError(f"KerasHub is needed ({error}): pip install -r requirements-hub.txt") from error


def read_model(path: Path) -> keras.Model:
    """The model in a .keras file, with its optimizer's state.

    Raises:
        InputError: it needs KerasHub, which is not installed.
        Exception: of many types where the file is broken, or holds variables that Keras would pass over with a warning.
    """
    with warnings.catch_warnings():
        with zipfile.ZipFile(path) as archive:
            require_stored(archive)
            if b"keras_hub" in archive.read("config.json"):
                require_keras_hub()
        warnings.filterwarnings("error", "Skipping variable loading|.*could not be loaded")
        model = keras.saving.load_model(path, safe_mode=True)
    if not isinstance(model, keras.Model):
        raise TypeError(f"it holds a {type(model).__name__}")
    return model


def is_ours(path: Path) -> bool:
    """Whether a .keras file is a model that a run of this project has made, or cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        require_stored(archive)
        return json.loads(archive.read("config.json"))["config"]["name"] == NAME
    return True
