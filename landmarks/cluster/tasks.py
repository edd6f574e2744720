"""Shards as tasks of a Ray cluster: each becomes a file, made by whichever device is free, and kept here.

Ray starts the actors, one a device, repeats what fails and brings what a lost node had to another. What is left to do
here is to give each actor no more shards than it may have on its disk at a time.
"""

import logging
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from landmarks.cluster.worker import Job, Made, Worker
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.shards import TarShard
from landmarks.mirrors.web import WebMirror
from landmarks.running.command import InputError, check_stop
from landmarks.running.files import whole
from landmarks.running.progress import Progress
from landmarks.running.settings import ROOT, URLS
from landmarks.running.skipped import record_rows

CODE = ("*.py", "landmarks/**/*.py")  # what goes to the nodes; packages have to be there
RETRIES = 3  # of a shard whose task fails, or whose node is lost, before the run ends
LOST = 600  # seconds in which the workers that have a shard are lost again and again, before the run ends
SHARED = {  # what a back end takes of a GPU's memory grows with its need, since processes of one machine may share it
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


def require(address: str) -> None:
    """Before Keras is imported: raise InputError if `--cluster` is given and Ray is not installed."""
    if not address:
        return
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise InputError("--cluster needs Ray: pip install -r requirements-cluster.txt") from error
    for name, value in SHARED.items():
        os.environ.setdefault(name, value)


def write(path: Path, data: np.ndarray) -> None:
    """Keep a file that a task has made, (bytes,) uint8."""
    with whole(path) as part:
        part.write_bytes(data.data)


def share(
    address: str,
    open_job: Callable[[], Job],
    mirror: Mirror,
    split: str,
    files: dict[str, Path],
    work: Path,
    what: str,
    keep: Callable[[Path, np.ndarray], None] = write,
) -> None:
    """Make the files of these shards on a cluster; what is finished is kept when this ends early.

    An actor has at most `ahead` + 1 shards in hand: while its device works on one, it downloads the next. So a node's
    disk holds no more than that for each of its devices, and this machine's memory a file for each shard in hand.

    Args:
        address: of the cluster; "auto" for the one that this machine is part of, or else this machine's own devices.
        open_job: called once in each actor; it and what it holds are sent there.
        files: where each shard's file goes, by its name.
        work: `skipped.csv` there names what was passed over.
        what: of the progress bar.
        keep: writes what a task has made to its place.

    Raises:
        InputError: there is no such cluster, or a shard cannot be done, or its task failed `RETRIES` times again.
    """
    if not files:
        return
    ray = connect(address)
    device, count = devices(ray.nodes())
    settings = {**mirror.settings.model_dump(), "max_damaged": 1.0}  # how many are damaged is seen here
    source = mirror.name if mirror.name.startswith(URLS) else str(Path(mirror.name).resolve())
    slots = mirror.settings.ahead + 1
    actor = ray.remote(Worker).options(**options(device, slots))
    job = [ray.put(open_job)]  # in a list, so that an actor gets it when it has none yet
    given = source, settings, split, str(work), cores_of(device)
    workers = [actor.remote(*given) for _ in range(min(count, len(files)))]
    waiting = deque(files)
    flying: dict[Any, tuple[Any, str]] = {}
    since: dict[str, float] = {}  # when a shard's worker was lost first, while there were devices
    resting: list[Any] = []  # actors whose node does not answer: Ray takes some seconds to know that it is lost

    def send(worker: Any) -> None:
        if waiting:
            name = waiting.popleft()
            task = worker.make.options(max_task_retries=RETRIES, retry_exceptions=True).remote(name, job)
            flying[task] = worker, name

    try:
        for worker in workers * slots:
            send(worker)
        # An actor that no shard is left for is let go when its last one is done, and its device is free for an actor
        # whose node was lost.
        del workers, worker
        with Progress(total=len(files), desc=what, unit=" shards") as bar:
            while flying or waiting:
                if not flying:
                    time.sleep(1)
                done = ray.wait(list(flying), timeout=1)[0] if flying else []
                check_stop()
                while resting:
                    send(resting.pop())
                for task in done:
                    worker, name = flying.pop(task)
                    made = _result(ray, task, f"{split}/{name}")
                    if made is None:
                        if not _has_device(ray):
                            since.clear()
                        elif time.monotonic() - since.setdefault(name, time.monotonic()) > LOST:
                            raise InputError(
                                f"{split}/{name} could not be done on the cluster: each worker that has it ends, as "
                                "where memory is short; run the same command again, finished shards are kept"
                            )
                        waiting.append(name)
                        resting.append(worker)
                        continue
                    send(worker)
                    del worker
                    _note(made, mirror, split, name, work)
                    keep(files[name], made.file)
                    bar.update()
    finally:
        for worker, _ in flying.values():
            ray.kill(worker)


def connect(address: str) -> Any:
    """Ray, connected to a cluster, which has this code. Raises InputError if there is none."""
    require(address)
    import ray

    if ray.is_initialized():
        return ray
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with TemporaryDirectory() as folder:
        for path in (path for pattern in CODE for path in ROOT.glob(pattern)):
            copy = Path(folder) / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        try:
            ray.init(
                address=None if address == "auto" else address,
                runtime_env={"working_dir": folder},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"--cluster {address}: no cluster answers ({str(error).splitlines()[0][:200]}); start one with "
                "`ray start --head`, and give its address or auto"
            ) from error
    for number, handler in handlers.items():  # Ray puts its own in their place
        signal.signal(number, handler)
    return ray


def devices(nodes: list[dict[str, Any]]) -> tuple[dict[str, float], int]:
    """What each actor holds, and how many there can be: a GPU each, or as many cores as the smallest node has.

    All hold the same, so that one whose node was lost can start again on any other. Raises InputError if there is none.
    """
    there = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpu = [one for one in there if one.get("GPU", 0) >= 1]
    if with_gpu:
        cores = min(one.get("CPU", 0) // one["GPU"] for one in with_gpu)
        return {"num_gpus": 1, "num_cpus": cores}, int(sum(one["GPU"] for one in with_gpu))
    of_nodes = [int(one["CPU"]) for one in there if one.get("CPU", 0) >= 1]
    if not of_nodes:
        raise InputError("the cluster has neither a GPU nor a core to work on: add a node to it")
    return {"num_cpus": min(of_nodes)}, sum(cores // min(of_nodes) for cores in of_nodes)


def cores_of(device: dict[str, float]) -> int:
    return max(1, int(device["num_cpus"]))


def options(device: dict[str, float], slots: int) -> dict[str, Any]:
    """Ray's, of an actor that holds a device and does so many tasks at a time; a lost one starts again elsewhere."""
    environment = {
        "KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "tensorflow"),
        "TF_NUM_INTEROP_THREADS": "2",
        "TF_NUM_INTRAOP_THREADS": str(cores_of(device)),
        "TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **SHARED,
    }
    return {**device, "max_restarts": -1, "max_concurrency": slots, "runtime_env": {"env_vars": environment}}


def _has_device(ray: Any) -> bool:
    try:
        devices(ray.nodes())
    except InputError:
        return False
    return True


def _result(ray: Any, task: Any, shard: str) -> Made | None:
    """What a task has made; None if that was lost with its node, or never begun there."""
    try:
        made: Made = ray.get(task)
    except (ray.exceptions.ObjectLostError, ray.exceptions.ActorUnavailableError):
        return None
    except ray.exceptions.RayError as error:
        raise InputError(
            f"{shard} could not be done on the cluster: {reason(error)}; run the same command again, finished shards "
            "are kept"
        ) from error
    if made.error:
        raise InputError(made.error)
    return made


def reason(error: Exception) -> str:
    """The last line of what Ray tells, which has the traceback of the node."""
    return [line for line in str(error).splitlines() if line.strip()][-1].strip()


def _note(made: Made, mirror: Mirror, split: str, name: str, work: Path) -> None:
    """What a mirror on this machine would have noted of a shard."""
    record_rows(work, made.skipped)
    if made.damage:
        shard = SimpleNamespace(name=name, ids=range(made.photos), damage=made.damage)
        mirror.tolerate(split, cast(TarShard, shard))
    if isinstance(mirror, WebMirror):
        for shard_name, expected, found in made.mismatches:
            mirror.accept_mismatch(shard_name, expected, found)
