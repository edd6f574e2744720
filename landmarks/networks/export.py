"""A Keras model in files of other runtimes, SavedModel, ONNX, OpenVINO and LiteRT: written, and run from there."""

import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from landmarks.running.command import InputError
from landmarks.running.threads import cores

if TYPE_CHECKING:
    import keras  # it takes seconds, which --help need not wait for

INPUT, OUTPUT = "input_image", "global_descriptor"  # as the Landmark Retrieval challenge of 2020 and DELF name them
Run = Callable[[np.ndarray], np.ndarray]


class Format(NamedTuple):
    """A format, and what it takes beside requirements.txt."""

    file: str  # in the folder that is written; none: the folder is it
    packages: list[str]
    write: Callable[["keras.Model", Path], None]
    open: Callable[[Path], Run]


def require(name: str) -> None:
    """Raise InputError unless a format can be had on this machine."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"KERAS_BACKEND is {keras.backend.backend()}: exports are written with TensorFlow, which loads what "
            "another back end has trained; unset it"
        )
    if absent := [package for package in FORMATS[name].packages if find_spec(package) is None]:
        raise InputError(f"--format {name} needs {' and '.join(absent)}: pip install -r requirements-export.txt")


def write(model: "keras.Model", name: str, folder: Path) -> None:
    """Write `model`, which maps `INPUT` to {`OUTPUT`: ...}, in a format into a folder that is there.

    Raises InputError if the converter of that format cannot take it.
    """
    said = StringIO()  # converters tell of each step, some of them on the standard output
    try:
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what converters will have to change
            FORMATS[name].write(model, folder / FORMATS[name].file)
    except Exception as error:  # of a converter, and of many types
        raise InputError(f"--format {name} cannot be written by these versions: {str(error)[:300]}") from error


def opened(name: str, folder: Path) -> Run:
    """What `write` wrote, in its own runtime: (H, W, 3) uint8 to the descriptor, (D,) float32.

    Raises InputError if that runtime cannot take it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return FORMATS[name].open(folder / FORMATS[name].file)
    except Exception as error:  # of a runtime, and of many types
        raise InputError(f"--format {name} cannot be run by these versions: {str(error)[:300]}") from error


def in_keras(model: "keras.Model") -> Run:
    """The model itself, as what is opened is compared with it."""
    import tensorflow as tf

    graph = tf.function(model, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    return lambda photo: graph(photo)[OUTPUT].numpy()


def as_float32(model: "keras.Model") -> "keras.Model":
    """The model with every layer in float32, as its weights are, though it was trained in mixed precision."""
    import keras

    config = model.to_json()
    single = config.replace('"mixed_float16"', '"float32"').replace('"mixed_bfloat16"', '"float32"')
    if single == config:
        return model
    same = keras.models.model_from_json(single)
    same.set_weights(model.get_weights())
    return same


def _write_savedmodel(model: "keras.Model", path: Path) -> None:
    model.export(path, format="tf_saved_model", verbose=False)


def _open_savedmodel(path: Path) -> Run:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))  # holds the weights for the signature
    signature = loaded.signatures["serving_default"]
    return lambda photo: (loaded, signature(**{INPUT: tf.constant(photo)})[OUTPUT].numpy())[1]


def _write_onnx(model: "keras.Model", path: Path) -> None:
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model.export(path, format="onnx", verbose=False)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda photo: session.run([OUTPUT], {INPUT: photo})[0]


def _write_openvino(model: "keras.Model", path: Path) -> None:
    import openvino

    with TemporaryDirectory() as folder:  # Keras' own export leaves outputs without their names
        _write_savedmodel(model, Path(folder))
        openvino.save_model(openvino.convert_model(folder), path, compress_to_fp16=False)


def _open_openvino(path: Path) -> Run:
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16 where the processor has it, which differs by more
    compiled = openvino.Core().compile_model(path, "CPU", hint)
    return lambda photo: compiled({INPUT: photo})[OUTPUT]


def _write_litert(model: "keras.Model", path: Path) -> None:
    import tensorflow as tf

    with TemporaryDirectory() as folder:  # Keras' own export is of 3.13, and may take operations that LiteRT lacks
        _write_savedmodel(model, Path(folder))
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def _open_litert(path: Path) -> Run:
    if find_spec("ai_edge_litert"):  # to which TensorFlow says it will leave its own one day
        from ai_edge_litert import interpreter as lite
    else:
        from tensorflow.lite.python import interpreter as lite
    # XNNPACK, the default delegate, fails on photos of another size than the first one.
    plain = lite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    opened = lite.Interpreter(str(path), num_threads=cores(), experimental_op_resolver_type=plain)
    runner = opened.get_signature_runner()
    return lambda photo: runner(**{INPUT: photo})[OUTPUT]


FORMATS = {
    "savedmodel": Format("", [], _write_savedmodel, _open_savedmodel),
    "onnx": Format("model.onnx", ["tf2onnx", "onnx", "onnxruntime"], _write_onnx, _open_onnx),
    "openvino": Format("model.xml", ["openvino"], _write_openvino, _open_openvino),
    "litert": Format("model.tflite", [], _write_litert, _open_litert),
}
