"""Several hosts that train one model together, on JAX: joined once, alike in every step, and what they tell each other.

Each host runs the same program, and a step computes on the devices of all. Whatever is called here all hosts have to
call, in the same order, from one thread.

Source: "Introduction to multi-controller JAX", docs.jax.dev.
"""

import itertools
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np

from landmarks.running import apart, command
from landmarks.running.command import InputError, Stopped
from landmarks.running.files import whole

JOIN_SECONDS = 300  # until the last host has to be there
SILENT_SECONDS = 60  # a host that has not been heard of for so long is lost
CHUNK = 2**26  # bytes that are on their way at a time, and on each device
MEETING = 16  # steps: so often hosts agree on whether to end
LONGEST_WAIT = 24 * 60 * 60  # seconds, for a host that is heard of

_waits = itertools.count()
count, number = 1, 0  # of hosts that have joined, and which one this is


def join(hosts: str, seconds: int = JOIN_SECONDS) -> None:
    """Join the others, before JAX has computed anything.

    Args:
        hosts: HOST:PORT,COUNT,NUMBER: where host 0 listens, how many they are, and which one this is; or auto, where
            Slurm, Open MPI or a TPU pod tells that.
        seconds: until all have to be there; else JAX ends this process.

    Raises:
        InputError: the back end is not JAX, the address is none, or nobody tells where the hosts are.
    """
    global count, number
    if keras.backend.backend() != "jax":
        raise InputError(f"--hosts {hosts} needs JAX: pip install jax, and set KERAS_BACKEND=jax")
    import jax

    given: dict[str, Any] = {}
    if hosts != "auto":
        address, total, own = hosts.rsplit(",", 2)
        name, port = address.rsplit(":", 1)
        try:
            socket.getaddrinfo(name.strip("[]"), int(port))
        except OSError as error:
            raise InputError(f"--hosts {hosts}: {name} is no address of a host ({error.strerror})") from error
        given = {"coordinator_address": address, "num_processes": int(total), "process_id": int(own)}
        given["cluster_detection_method"] = "deactivate"
        if own == "0":
            _require_free(hosts, int(port))
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(**given, initialization_timeout=seconds, heartbeat_timeout_seconds=SILENT_SECONDS)
    except ValueError as error:
        raise InputError(
            f"--hosts {hosts}: neither Slurm nor Open MPI nor a TPU pod tells where the hosts are ({error}); give "
            "--hosts HOST:PORT,COUNT,NUMBER"
        ) from error
    count, number = jax.process_count(), jax.process_index()
    _assign_without_asking()
    _reach_all_devices()


def _require_free(hosts: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise InputError(f"--hosts {hosts}: port {port} cannot be listened at ({error.strerror})") from error


def leave() -> None:
    """Part when all are done: whoever ends before counts as lost."""
    import jax

    jax.distributed.shutdown()


@contextmanager
def lost(message: str) -> Iterator[None]:
    """Raise InputError with this message where JAX finds, within the block, that it cannot reach another host."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # of this host's memory
            raise
        raise InputError(f"{message} ({str(error)[:200]})") from error


def _assign_without_asking() -> None:
    """Let Keras lay values out over the devices of all hosts without comparing them first.

    `jax.device_put` would gather each from all hosts on every device, at every assignment of a learning rate too. They
    are alike, as all hosts begin from one checkpoint. There is no public way: seen with JAX 0.10 and Keras 3.15.
    """
    import jax
    from keras.src.backend.jax import distribution_lib

    usual = distribution_lib.distribute_tensor

    def distribute_tensor(tensor: Any, layout: Any) -> Any:
        if isinstance(tensor, jax.core.Tracer) or (isinstance(tensor, jax.Array) and not tensor.is_fully_addressable):
            return usual(tensor, layout)
        value = np.asarray(tensor)
        layout = getattr(layout, "backend_layout", layout)
        return jax.make_array_from_callback(value.shape, layout, lambda index: value[index])

    distribution_lib.distribute_tensor = distribute_tensor


def _wait() -> None:
    """Until all hosts are here, however long one takes to fetch a shard: their devices would not wait for each other.

    Gloo, by which CPUs tell each other things, gives up after 30 seconds, and with it JAX's public barrier, a gathering
    from all devices. This fails where a host is lost.
    """
    from jax._src.distributed import global_state

    assert global_state.client is not None
    global_state.client.wait_at_barrier(f"landmarks {next(_waits)}", LONGEST_WAIT * 1000)


def _reach_all_devices() -> None:
    """Let the devices of all hosts connect while all are here: later one may still compile when others wait already."""
    import jax

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ["devices"])
    shared, whole_sum = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*of)) for of in (["devices"], []))
    ones = jax.make_array_from_callback((mesh.size,), shared, lambda index: np.ones(mesh.size, "float32")[index])
    add = jax.jit(lambda array: array.sum(), out_shardings=whole_sum).lower(ones).compile()
    _wait()
    add(ones).block_until_ready()
    of_all(number)


def of_all(value: int) -> np.ndarray:
    """What each host gives, (hosts,) int32."""
    if count == 1:
        return np.array([value], "int32")
    from jax.experimental import multihost_utils

    _wait()
    return multihost_utils.process_allgather(np.int32(value))


def told(data: np.ndarray, source: int = 0) -> np.ndarray:
    """The array that the host `source` gives, on all of them, which give one of its shape and type."""
    from jax.experimental import multihost_utils

    _wait()
    flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    chunks = [
        multihost_utils.broadcast_one_to_all(flat[begin : begin + CHUNK], is_source=number == source)
        for begin in range(0, len(flat), CHUNK)
    ]
    return np.concatenate(chunks).view(data.dtype).reshape(data.shape)


def bring(path: Path) -> None:
    """Have host 0's file here, whole, or none where it has none."""
    there = path.stat().st_size if number == 0 and path.exists() else -1
    size = told(np.array([there], "int64"))[0]
    if size < 0:
        path.unlink(missing_ok=True)
        return
    with whole(path) if number else nullcontext(path) as part, open(part, "wb" if number else "rb") as file:
        for begin in range(0, size, CHUNK):
            length = min(CHUNK, size - begin)
            chunk = np.empty(length, "uint8") if number else np.frombuffer(file.read(length), "uint8")
            chunk = told(chunk)
            if number:
                file.write(chunk.tobytes())


def require_alike(what: str, mine: Mapping[str, object]) -> None:
    """Raise InputError, on all hosts, unless all have the values of host 0.

    Args:
        what: these are, like "settings".
        mine: values by name, of JSON's kinds.
    """
    text = np.frombuffer(json.dumps(mine, default=str).encode(), "uint8")
    length = told(np.array([len(text)], "int64"))[0]
    first = json.loads(told(np.resize(text, length)).tobytes())
    own = json.loads(text.tobytes())
    differ = [f"{name} = {own.get(name)}, host 0 has {first[name]}" for name in first if own.get(name) != first[name]]
    others = np.flatnonzero(of_all(len(differ)))
    if len(others):
        told_here = f": {'; '.join(differ)[:1000]}" if differ else ", which tells more"
        raise InputError(
            f"host {number if differ else others[0]} has other {what} than host 0{told_here}; give all hosts the same "
            "command, mirror and recipe"
        )


def check_stop(step: int) -> None:
    """Raise Stopped if this run has been asked to end: on all hosts, where any of them has, before the same step."""
    if count == 1:
        command.check_stop()
    elif step % MEETING == 0 and of_all(apart.asked.is_set()).any():
        raise Stopped("stopped, as another host was; finished work is kept, the same command, on all hosts, goes on")


def first_says(step: int, is_so: bool) -> bool:
    """What host 0 says, before steps at which hosts meet; before others nothing is so. On one host, what it says."""
    return is_so if count == 1 else step % MEETING == 0 and bool(of_all(is_so)[0])


@contextmanager
def gathered(variables: Iterable[keras.Variable]) -> Iterator[bool]:
    """For the block host 0 has all of these in its memory, also what is in parts on others; whether this is host 0."""
    held = []
    for variable in variables if count > 1 else ():
        value = variable.value
        if value.is_fully_replicated:
            continue
        here = {shard.device: np.asarray(shard.data) for shard in value.addressable_shards}
        found = np.empty(value.shape if number == 0 else 0, value.dtype)
        for device, index in value.sharding.devices_indices_map(value.shape).items():
            part = here.get(device, np.empty(value.sharding.shard_shape(value.shape), value.dtype))
            part = told(part, device.process_index)
            if number == 0:
                found[index] = part
        if number == 0:
            held.append((variable, value))
            variable._value = found
    try:
        yield number == 0
    finally:
        for variable, value in held:
            variable._value = value


def predict(predictor: keras.Model, photos: Any) -> dict[str, Any]:
    """What `predictor` says of photos that the devices of all hosts share, whole on each of them."""
    variables = predictor.trainable_variables, predictor.non_trainable_variables
    return _compiled(predictor)(*([one.value for one in group] for group in variables), photos)


@lru_cache(1)
def _compiled(predictor: keras.Model) -> Any:
    import jax

    def found(trainable: list, others: list, photos: Any) -> dict[str, Any]:
        return predictor.stateless_call(trainable, others, photos, training=False)[0]

    sharing = keras.distribution.distribution()
    everywhere = jax.sharding.NamedSharding(sharing.device_mesh.backend_mesh, jax.sharding.PartitionSpec())
    return jax.jit(found, out_shardings=everywhere)
