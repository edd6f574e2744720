"""Runs Python in forks of a process that has imported what every script imports, which takes longer than the rest.

Such a fork is as good as a new process: importing a back end starts no thread, and that process executes nothing of it.
OpenBLAS, whose threads NumPy does start, ends them before a fork.
"""

import atexit
import gc
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from shutil import rmtree
from typing import NoReturn

ROOT = Path(__file__).parent.parent
ALONE = [  # settings that leave the model and its embeddings as they are, whatever the recipe
    "--beside=", "--whitening=none", "--dimensions=0", "--scales=1", "--scale-pooling=mean", "--mirrored",
]  # fmt: skip
# And train a head by softmax, with a checkpoint to go on from after each mini-epoch, which take no minute.
PLAIN = ["--recipe=small", "--checkpoint-minutes=0", "--database-augmentation=0", *ALONE]


@cache
def _compiled() -> str:
    """A folder of what JAX has compiled for any process, as most of a test on JAX is compiling."""
    folder = tempfile.mkdtemp()
    atexit.register(rmtree, folder)
    return folder


def jax(devices: int = 1) -> dict[str, str]:
    """The environment of Python on JAX with so many virtual devices of a CPU."""
    return os.environ | {
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": _compiled(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def on(backend: str) -> dict[str, str]:
    """The environment of Python on this back end of Keras."""
    return jax() if backend == "jax" else os.environ | {"KERAS_BACKEND": backend}


def run(
    *arguments,
    environment: Mapping[str, str] = os.environ,
    meanwhile: Callable[[int], None] = lambda _: None,
    fork: bool = True,
) -> subprocess.CompletedProcess:
    """How Python with these arguments, `PATH ...` or `-c PROGRAM ...`, ends in the project's folder; with its output.

    Where a fork is not wanted, or not safe, as on other systems than Linux, it is a new process. Either way Keras has
    the backbone `Tiny`.

    Args:
        meanwhile: is given the process id while it runs.
    """
    given = [str(argument) for argument in arguments]
    if not fork or sys.platform != "linux":
        command = [sys.executable, __file__, *given]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
            meanwhile(process.pid)
            output = process.communicate()
        return subprocess.CompletedProcess(given, process.returncode, *output)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        server = _server(environment.get("KERAS_BACKEND", "tensorflow"))
        server.send((given, dict(environment), outputs))
        meanwhile(server.recv())
        return subprocess.CompletedProcess(given, server.recv(), *(path.read_text() for path in outputs))


@cache
def _server(backend: str) -> Connection:
    """The process that forks, one for each process that tests and each back end, and ends with it."""
    here, there = Pipe()
    command = [sys.executable, __file__, "--serve", str(there.fileno())]
    process = subprocess.Popen(command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, env=on(backend))
    there.close()
    atexit.register(process.wait)
    atexit.register(here.close)  # which ends it, before it is waited for
    return here


def serve(requests: Connection) -> None:
    """Fork for every request and answer with the process id, then the exit code, until the connection is closed."""
    gc.freeze()  # spares each fork the search for garbage in what has been imported
    while True:
        try:
            arguments, environment, outputs = requests.recv()
        except EOFError:
            return
        child = os.fork()
        if child == 0:
            requests.close()
            for descriptor, path in enumerate(outputs, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
            os.chdir(ROOT)
            os.environ.clear()
            os.environ.update(environment)
            end_with(arguments)
        requests.send(child)
        requests.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def end_with(arguments: list[str]) -> NoReturn:
    """Execute them and end this fork as Python does, but for taking TensorFlow apart, which takes 0.3 seconds."""
    code: int | str | None = 1
    try:
        execute(arguments)
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def execute(arguments: list[str]) -> None:
    """What Python does when it is started with these arguments."""
    if arguments[0] == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *arguments[2:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(arguments[1], vars(sys.modules["__main__"]))
    else:
        sys.path[0] = str(Path(arguments[0]).parent)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def import_all() -> None:
    """TensorFlow takes seconds; with it loaded, the project's settings alone take half a second."""
    sys.path[0] = str(ROOT)
    from landmarks.running import command

    command.prepare_backend()
    import cv2  # noqa: F401
    import tensorflow  # noqa: F401  whatever the back end: to seed it, Keras imports what is installed

    import recognition  # noqa: F401
    import report  # noqa: F401
    import retrieval  # noqa: F401
    from landmarks.local_features import decision  # noqa: F401
    from landmarks.neighbours import ensemble  # noqa: F401
    from landmarks.report import page  # noqa: F401
    from landmarks.training import run  # noqa: F401

    sys.path[0] = str(Path(__file__).parent)
    import tiny  # noqa: F401


if __name__ == "__main__":
    import_all()
    if sys.argv[1] == "--serve":
        serve(Connection(int(sys.argv[2])))
    else:
        execute(sys.argv[1:])
