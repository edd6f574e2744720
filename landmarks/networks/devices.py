"""What Keras' back end computes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import keras


@cache
def accelerated() -> bool:
    """Whether there is a GPU or a TPU, and the back end uses it."""
    if keras.backend.backend() == "torch":  # whose devices keras.distribution does not know
        import torch

        return torch.cuda.is_available()
    return not keras.distribution.list_devices()[0].lower().startswith("cpu")


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 matrices are computed in float32, not in TensorFloat-32, which has a mantissa of 10 bits."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        from tensorflow import config

        before = config.experimental.tensor_float_32_execution_enabled()
        config.experimental.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            config.experimental.enable_tensor_float_32_execution(before)
    elif backend == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
    else:
        import torch

        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
