"""Networks of other runtimes as frozen backbones: an ONNX file, or a SavedModel of a global descriptor such as DELG."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from landmarks.networks import onnx_file, savedmodel
from landmarks.networks.layers import register
from landmarks.running.command import InputError


def is_frozen(name: str) -> bool:
    """Whether a backbone of this name is of another runtime, in which nothing can be trained."""
    return name.endswith(".onnx") or savedmodel.is_one(name)


def frozen_backbone(path: Path, image_size: int) -> keras.Model:
    """A network of another runtime, photos (B, H, W, 3), RGB of 0 to 255, to its map (B, h, w, C); nothing is trained.

    A vector becomes a map of one place, (B, 1, 1, C).

    Args:
        image_size: the side of photos that it is tried on, where it takes any.

    Raises:
        InputError: it cannot be had, does not map photos to one of these, or could do harm.
    """
    try:
        is_onnx = path.suffix == ".onnx"
        files = {"model.onnx": onnx_file.read(path)} if is_onnx else savedmodel.read(path)
        layer = Frozen("onnx" if is_onnx else "savedmodel", name="extractor")
        layer.open(files)
        side = layer.side
        black = ops.zeros((1, *([side or image_size] * 2), 3))
        layer.shape = tuple(ops.shape(layer.seen(black)))[1:]
        if len(layer.shape) not in (1, 3):
            raise ValueError(f"it gives {layer.shape} for a photo, no vector and no map")
    except InputError as error:
        raise InputError(f"backbone {path}: {error}") from error
    except Exception as error:  # of onnxruntime or TensorFlow, as a photo goes through
        raise InputError(f"backbone {path} does not take photos of {image_size} px ({str(error)[:300]})") from error
    given = keras.Input((side, side, 3))
    output = layer(given)
    if len(layer.shape) == 1:
        output = layers.Reshape((1, 1, layer.shape[0]))(output)
    return keras.Model(given, output, name="frozen")


@register
class Frozen(layers.Layer):
    """Photos (B, H, W, 3), RGB of 0 to 255, to vectors (B, D) or maps (B, h, w, C) float32, by another runtime.

    The network's own files are kept within the .keras file, and are checked whenever it is loaded. No gradient goes
    through it.

    Args:
        kind: "onnx", which runs on every back end, or "savedmodel", on TensorFlow alone.
        shape: what it gives for a photo, (D,) or (h, w, C).
    """

    def __init__(self, kind: str, shape: tuple[int, ...] = (), **kwargs: Any):
        super().__init__(**{**kwargs, "trainable": False, "dtype": "float32"})
        self.supports_jit = False  # of the graph, which calls back
        self.kind, self.shape = kind, tuple(shape)
        self.side: int | None = None
        self._files: list[dict[str, bytes]] = []  # in a list, which Keras does not look into
        self._run: Any = None

    def open(self, files: dict[str, bytes]) -> None:
        """Take the network from its files, by their names. Raises InputError if it does not load, or could do harm."""
        if self.kind == "onnx":
            self._run, self.side = onnx_file.opened(files["model.onnx"])
        else:
            self._run = savedmodel.opened(files)
        self._files = [files]

    def compute_output_spec(self, photos):
        free = self.shape if len(self.shape) == 1 else (None, None, self.shape[-1])
        return keras.KerasTensor((photos.shape[0], *free), dtype="float32")

    def call(self, photos):
        found = self.seen(photos)
        if len(self.shape) == 1:
            return ops.reshape(found, (-1, *self.shape))  # which is known then, as it is not of what is called back
        return ops.reshape(found, (-1, *ops.shape(found)[1:3], self.shape[-1]))

    def seen(self, photos):
        """What the network itself gives. Raises InputError if a .keras file was without its files."""
        if self._run is None:
            raise InputError(f"layer {self.name} has lost the files of its network; give the model as it was saved")
        if self.kind == "savedmodel":
            return self._run(ops.cast(ops.round(photos), "uint8"))
        return _called_back(self._run, photos, rank=1 + len(self.shape))

    def save_assets(self, folder):
        savedmodel.write(self._files[0], Path(folder))

    def load_assets(self, folder):
        self.open(savedmodel.read(Path(folder)))

    def get_config(self):
        return {**super().get_config(), "kind": self.kind, "shape": self.shape}


def _called_back(run: Callable[[np.ndarray], np.ndarray], photos, rank: int):
    """What a function of NumPy's arrays makes of a tensor, amid a graph; it has so many dimensions there."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        found = tf.numpy_function(run, [photos], tf.float32, stateful=False)
        return found if tf.executing_eagerly() else tf.ensure_shape(found, [None] * rank)
    if backend == "jax":
        import jax

        shape = run(np.zeros(photos.shape, "float32")).shape  # of a map it is told by trying
        # NumPy's functions of an array of JAX would be computed by JAX, which waits for this call.
        return jax.pure_callback(lambda given: run(np.asarray(given)), jax.ShapeDtypeStruct(shape, "float32"), photos)
    return ops.convert_to_tensor(run(ops.convert_to_numpy(photos)))
