"""What was run in a work folder: each command, when, for how long, how it ended, and by which versions."""

import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from landmarks.running.command import InputError, Stopped
from landmarks.running.files import append_rows
from landmarks.running.threads import cores
from landmarks.running.version import version

HISTORY = "runs.csv"  # in a work folder
COLUMNS = ("began", "seconds", "ended", "command", "versions")
PACKAGES = ("keras", "tensorflow", "jax", "torch", "numpy", "faiss", "PIL")  # which figures depend on


@contextmanager
def noted(work: Path) -> Iterator[None]:
    """Add a line to `work/runs.csv` when the block ends, however it does, but for a kill or a full disk."""
    began, start, ended = datetime.now().astimezone(), time.monotonic(), "finished"
    try:
        yield
    except BaseException as error:
        ended = "stopped" if isinstance(error, Stopped) else "refused" if isinstance(error, InputError) else "failed"
        raise
    finally:
        command = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]).replace("\n", "\\n")
        command = command.encode(errors="backslashreplace").decode()  # the name of a file may be no text
        row = began.isoformat(timespec="seconds"), round(time.monotonic() - start), ended, command, versions()
        with suppress(OSError):  # the run's own end counts
            append_rows(work / HISTORY, COLUMNS, [row])


def stamp() -> str:
    """What a measured figure goes with: the date, the commit, the versions and the machine."""
    return f"{datetime.now().date()}: {versions()}"


def versions() -> str:
    """Of this project, Python, and the loaded packages that figures depend on; and the machine's kind."""
    here = f"landmarks {version()}"
    loaded = [f"{name} {sys.modules[name].__version__}" for name in PACKAGES if name in sys.modules]
    return ", ".join([here, f"Python {platform.python_version()}", *loaded, platform.platform(), f"{cores()} cores"])
