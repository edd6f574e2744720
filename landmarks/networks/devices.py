"""What Keras' back end computes on: one device, or several that share batches, and the classes of a large head."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import keras
import numpy as np
from keras import ops

from landmarks.networks import hosts
from landmarks.running.command import InputError

PARTS = "parts"  # the name of a weight whose last axis is shared out
AXIS = "devices"  # of the mesh


@cache
def accelerated() -> bool:
    """Whether there is a GPU or a TPU, and the back end uses it."""
    if keras.backend.backend() == "torch":  # whose devices keras.distribution does not know
        import torch

        return torch.cuda.is_available()
    return not keras.distribution.list_devices()[0].lower().startswith("cpu")


def share(devices: str, divisible: Sequence[Mapping[str, int]] = ()) -> None:
    """Let so many devices share what is built from now on: each has all weights, and its part of every batch.

    Of a `CosineHead` in parts each device has the classes of its parts alone, with their optimizer's state. Gradients
    and the softmax are those of the whole batch and of all classes: XLA adds up what the devices have.

    Args:
        devices: a number of them, or "all" that the back end finds.
        divisible: what they have to divide, by name.

    Raises:
        InputError: the back end is not JAX, there are fewer, or they do not divide these.
    """
    if devices == "1":
        return
    if keras.backend.backend() != "jax":
        raise InputError(f"--devices {devices} needs JAX: pip install jax, and set KERAS_BACKEND=jax")
    there = keras.distribution.list_devices()
    count = len(there) if devices == "all" else int(devices)
    if count > len(there):
        raise InputError(f"--devices {devices}: JAX finds {len(there)} here ({', '.join(there[:8])})")
    for name, size in [pair for sizes in divisible for pair in sizes.items()]:
        if size % count:
            raise InputError(f"{count} devices cannot share {name} {size} equally; give other --devices or --hosts")
    mesh = keras.distribution.DeviceMesh((count,), [AXIS], there[:count])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[f".*/{PARTS}"] = (None, None, AXIS)
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name=AXIS))


@contextmanager
def alone() -> Iterator[None]:
    """Let one device have what is built within, all of it: for batches that are too small to be shared."""
    sharing = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(sharing)


@contextmanager
def in_memory() -> Iterator[None]:
    """As `alone`, and in this host's own memory: for what is too large for any device, and not to be trained there."""
    with alone(), keras.device("cpu:0"):
        yield


def require_shared(model: keras.Model) -> None:
    """Raise InputError if a device has more of a weight in parts than its own, of which Keras would not say a word."""
    sharing = keras.distribution.distribution()
    for weight in model.weights if sharing else ():
        here = weight.value.sharding.shard_shape(weight.shape)
        if weight.name == PARTS and here[-1] * sharing.num_model_replicas != weight.shape[-1]:
            raise InputError(f"of {weight.path} {weight.shape} each device would hold {here}: --devices 1")


def placed(array: Any) -> Any:
    """An array (B, ...) on the device, or of each device that shares batches its part of the rows.

    Each of several hosts has all of it.
    """
    return placing()(array)


def placing() -> Callable[..., Any]:
    """`placed`, to be called from any thread: Keras knows in each by itself who shares batches.

    It takes B as well, where the array has no more than this host's rows.
    """
    return partial(_placed, keras.distribution.distribution())


def _placed(sharing: Any, array: Any, rows: int | None = None) -> Any:
    if sharing is None:
        return ops.convert_to_tensor(array)
    layout = sharing.get_data_layout(array.shape)
    if hosts.count == 1:
        return keras.distribution.distribute_tensor(np.asarray(array), layout)
    import jax

    shape = (rows or len(array), *array.shape[1:])
    return jax.make_array_from_process_local_data(layout.backend_layout, np.asarray(array), shape)


def own_rows(array: Any) -> Any:
    """What Keras' training on a batch takes of an array that is placed: of several hosts this one's rows."""
    if hosts.count == 1 or array is None:
        return array
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


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
