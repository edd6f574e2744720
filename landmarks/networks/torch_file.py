"""Tensors of a PyTorch file, read without PyTorch and without running code from it."""

import pickle
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from landmarks.running import command

MAX_FILE_BYTES = 64 * 2**20  # the package's file has 18.8 MB


class _Tensor(NamedTuple):
    """The arguments of torch._utils._rebuild_tensor_v2; offset and strides count elements."""

    storage: tuple  # "storage", dtype, key, device, elements, None
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    backward_hooks: OrderedDict


class _TensorUnpickler(pickle._Unpickler):  # in Python: that in C makes room for as many objects as seven bytes name
    """Knows what a dictionary of float32 and int64 tensors needs, and refuses every other name: no code can run."""

    KNOWN = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    }

    def find_class(self, module, name):
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.KNOWN[module, name]

    def persistent_load(self, storage):
        return storage


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that torch.save wrote before PyTorch 1.6 (not yet a zip), read without PyTorch.

    Such a file is a row of pickles (magic number, protocol, platform, the dictionary, the keys of its storages), and
    then each storage: its length as an int64 and its elements.

    Raises:
        command.InputError: the file is too large, damaged, or asks for anything but float32 and int64 tensors.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise command.InputError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: not the weights of this network")
    file = BytesIO(path.read_bytes())
    try:
        _magic, _protocol, _platform, tensors, keys = [_TensorUnpickler(file).load() for _ in range(5)]
        dtypes = {tensor.storage[2]: tensor.storage[1] for tensor in tensors.values()}
        storages = {}
        for key in keys:
            elements = int.from_bytes(file.read(8), "little")
            storages[key] = file.read(elements * dtypes[key].itemsize)
        return {name: _array(tensor, storages[tensor.storage[2]]) for name, tensor in tensors.items()}
    except Exception as error:  # damaged pickles raise almost anything
        raise command.InputError(
            f"{path} does not hold the weights ({str(error)[:300]}): install its package again"
        ) from error


def _array(tensor: _Tensor, storage: bytes) -> np.ndarray:
    """A view of the storage. Raises ValueError where it would reach beyond."""
    dtype = tensor.storage[1]
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.ndarray(tensor.shape, dtype, storage, tensor.offset * dtype.itemsize, strides)
