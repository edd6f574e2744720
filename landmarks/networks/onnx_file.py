"""An ONNX file of a network that maps photos to vectors or maps: read whole, checked, and run by onnxruntime."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from landmarks.running.command import InputError
from landmarks.running.threads import cores

MAX_BYTES = 2**31 - 2**16  # of a network with its weights: protobuf takes no more
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], "float32")  # of RGB in 0..1: what torchvision's models and timm's, for
IMAGENET_STD = np.array([0.229, 0.224, 0.225], "float32")  # the most part, were trained on
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class Network(NamedTuple):
    """A network that is open, and what it takes."""

    run: Callable[[np.ndarray], np.ndarray]  # (B, H, W, 3) float32, RGB of 0 to 255, to (B, D) or (B, h, w, C) float32
    side: int | None  # height and width that photos must have, in pixels; None: any


def read(path: Path) -> bytes:
    """An ONNX file with all its weights in it, those that lay beside it too.

    Raises InputError if it is none, needs files outside its folder, is too large, or `onnx` is not installed.
    """
    if absent := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
        raise InputError(f"{path} needs {' and '.join(absent)}: pip install -r requirements-export.txt")
    import onnx

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
        model = onnx.load(path, load_external_data=False)
        size = path.stat().st_size
        for tensor in _external(model):
            said = {entry.key: entry.value for entry in tensor.external_data}
            beside = path.parent / said.get("location", "")
            if not beside.resolve().is_relative_to(path.parent.resolve()):
                raise ValueError(f"its weights are outside its folder, in {said.get('location')}")
            size += int(said.get("length") or beside.stat().st_size)
        if size > MAX_BYTES:
            raise ValueError(f"with its weights it has more than {MAX_BYTES >> 20} MiB")
        onnx.load_external_data_for_model(model, str(path.parent))  # which follows no link either
        return model.SerializeToString()
    except Exception as error:  # of protobuf, onnx or the disk
        raise InputError(f"{path} is not an ONNX file that can be read ({str(error)[:300]})") from error


def opened(data: bytes) -> Network:
    """A network from what `read` gave.

    Photos that it takes channels first are normalised as torchvision does, by ImageNet's mean and deviation; channels
    last, or as uint8, they are given as RGB of 0 to 255. It may take one photo, (H, W, 3), or a fixed number. Of
    several outputs the first one that is a vector a photo, or else a map, is taken.

    Raises:
        InputError: it is no such network, or onnxruntime cannot run it.
    """
    import onnx
    import onnxruntime

    try:
        if any(_external(onnx.load_from_string(data))):
            raise ValueError("some of its weights are elsewhere")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        options.log_severity_level = 3
        providers = [one for one in onnxruntime.get_available_providers() if one.startswith(("CUDA", "CPU"))]
        session = onnxruntime.InferenceSession(data, options, providers=providers)
        given = session.get_inputs()
        shape = [side if isinstance(side, int) else None for side in given[0].shape]  # it names those that are free
        if len(given) != 1 or len(shape) not in (3, 4) or given[0].type not in TYPES or 3 not in (shape[-1], shape[-3]):
            told = ", ".join(f"{one.name} {one.type} {one.shape}" for one in given)
            raise ValueError(f"it does not take photos (batch, 3, height, width) or (batch, height, width, 3): {told}")
        first = shape[-1] != 3
        sides = set(shape[-2:] if first else shape[-3:-1]) - {None}
        if len(sides) > 1:
            raise ValueError(f"its photos are no squares: {given[0].shape}")
        ranks = {one.name: len(one.shape) + (len(shape) == 3) for one in session.get_outputs()}
        output = next((name for rank in (2, 4) for name in ranks if ranks[name] == rank), None)
        if output is None:
            raise ValueError(f"it gives neither a vector nor a map: {[one.shape for one in session.get_outputs()]}")
    except Exception as error:  # of protobuf, onnx or onnxruntime
        raise InputError(f"it is no ONNX network of photos that runs ({str(error)[:300]})") from error
    name, kind, batch = given[0].name, TYPES[given[0].type], shape[0] if len(shape) == 4 else 1

    def run(photos: np.ndarray) -> np.ndarray:
        if kind == "uint8":
            photos = np.rint(photos)
        elif first:
            photos = (photos / 255 - IMAGENET_MEAN) / IMAGENET_STD
        photos = (photos.transpose(0, 3, 1, 2) if first else photos).astype(kind)
        step = batch or max(len(photos), 1)
        found = []
        for begin in range(0, max(len(photos), 1), step):
            some = photos[begin : begin + step]
            filled = np.concatenate([some, np.zeros((step - len(some), *some.shape[1:]), kind)])
            out = session.run([output], {name: filled[0] if len(shape) == 3 else filled})[0]
            found.append((out[None] if len(shape) == 3 else out)[: len(some)])
        outputs = np.concatenate(found).astype("float32")
        return outputs.transpose(0, 2, 3, 1) if first and outputs.ndim == 4 else outputs

    return Network(run, next(iter(sides), None))


def _external(message: Any) -> Iterator[Any]:
    """The tensors anywhere in a model whose values are in other files."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if isinstance(value, list) or hasattr(value, "add") else [value]:
                if field.message_type.name == "TensorProto" and one.data_location == one.EXTERNAL:
                    yield one
                yield from _external(one)
