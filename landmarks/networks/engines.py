"""A predictor as one compiled function, for photos by the million: its weights stay as they are."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from landmarks.networks.devices import accelerated
from landmarks.running.command import InputError

Call = Callable[[Sequence[Any]], dict[str, Any]]
Engine = Literal["keras", "openvino", "openvino-bf16"]
FOLDED = 2**30  # bytes of weights: a graph of TensorFlow with its constants holds 2 GB


class Compiled:
    """What a predictor computes, as one call that is not waited for; its weights have to stay as they are.

    On a CPU TensorFlow gets the weights as constants, and folds the batch normalisations into the convolutions: 1.4
    times the photos a second of `predict_on_batch` (benchmarks/embedding.py). OpenVINO does the same with better
    kernels, in float32 or bfloat16.

    Args:
        predictor: takes photos (B, S, S, 3) uint8 of one size, or a list of those of several, to arrays by name.

    Raises:
        InputError: OpenVINO cannot take the network, or `require` raises it.
    """

    def __init__(self, predictor: keras.Model, engine: Engine = "keras"):
        self.predictor = predictor
        self._call = _compile(predictor) if engine == "keras" else _openvino(predictor, engine)

    def __call__(self, photos: Sequence[Any]) -> dict[str, Any]:
        """Tensors (B, ...) by name, of photos of each size, arrays or tensors."""
        return self._call(photos)

    def read(self, results: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, np.ndarray]:
        """Of each result the first so many rows, all together, as arrays; waits for the device."""
        return {
            name: np.concatenate(
                [np.empty((0, *output.shape[1:]), output.dtype)]
                + [ops.convert_to_numpy(result[name])[:count] for count, result in results]
            )
            for name, output in self.predictor.output.items()
        }


def require(engine: Engine) -> None:
    """Raise InputError unless an engine can be had on this machine."""
    if engine == "keras":
        return
    if find_spec("openvino") is None:
        raise InputError(f"--engine {engine} needs openvino: pip install -r requirements-export.txt")
    if keras.backend.backend() != "tensorflow":
        raise InputError(f"--engine {engine} takes networks of TensorFlow: unset KERAS_BACKEND")


def _compile(predictor: keras.Model) -> Call:
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        call = jax.jit(lambda *given: predictor.stateless_call(*given, training=False)[0])
        variables = _weights(predictor)  # once: Keras goes through all layers to find them

        def run(photos: Sequence[Any]) -> dict[str, Any]:
            # Read at each call, as Keras' own functions may have given their arrays away and put others there.
            weights = [[variable.value for variable in group] for group in variables]
            return call(*weights, _given(photos))

        return run
    if backend == "tensorflow" and _folds(predictor):
        return _folded(predictor)
    predictor.make_predict_function()
    return lambda photos: predictor.predict_function([(_given(photos),)])


def _given(photos: Sequence[Any]) -> Any:
    return list(photos) if len(photos) > 1 else photos[0]


def _weights(predictor: keras.Model) -> tuple[list, list]:
    return predictor.trainable_variables, predictor.non_trainable_variables


def _folds(predictor: keras.Model) -> bool:
    return not accelerated() and 4 * predictor.count_params() < FOLDED


def _folded(predictor: keras.Model) -> Call:
    import tensorflow as tf

    weights = [[ops.convert_to_numpy(variable) for variable in group] for group in _weights(predictor)]

    first = predictor.inputs[0].shape
    signature = [tf.TensorSpec(first, tf.uint8)] if None in first[1:] else None  # one graph for photos of any shape

    @tf.function(input_signature=signature)
    def call(photos: Any) -> dict:
        constants = [[tf.constant(value) for value in group] for group in weights]
        return predictor.stateless_call(*constants, photos, training=False)[0]

    return lambda photos: call(_given(photos))


def _openvino(predictor: keras.Model, engine: Engine) -> Call:
    require(engine)
    import openvino
    import tensorflow as tf

    shapes = [(None, *photos.shape[1:]) for photos in predictor.inputs]
    specs = [tf.TensorSpec(shape, tf.uint8, f"photos_{number}") for number, shape in enumerate(shapes)]
    graph = tf.function(lambda *photos: predictor(_given(photos), training=False), input_signature=specs)
    precision = {"INFERENCE_PRECISION_HINT": "bf16" if engine == "openvino-bf16" else "f32"}
    try:
        network = openvino.convert_model(graph)
        call = openvino.Core().compile_model(network, "CPU", precision)
    except Exception as error:  # of a converter, and of many types
        raise InputError(f"--engine {engine} cannot take {predictor.name}: {str(error)[:300]}") from error

    def run(photos: Sequence[Any]) -> dict[str, np.ndarray]:
        found = call([ops.convert_to_numpy(some) for some in photos])
        return {name: found[name] for name in predictor.output}

    return run
