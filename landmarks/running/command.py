"""How every command starts and ends: its environment, and one clear line with exit code 2 for what a user can mend."""

import argparse
import errno
import io
import os
import re
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

from landmarks.running.said import say
from landmarks.running.threads import cores

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNUSABLE_PATH = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")
GONE = {errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE}


class InputError(Exception):
    """Something the user gave is wrong. The message says what, where, and what to do, in one line."""


class Stopped(Exception):
    """The run ends early because a signal or the time limit asked for it. Finished work is on disk."""


class Parser(argparse.ArgumentParser):
    """Tells what is wrong with the arguments like any other wrong input. No path may be empty: it would mean `.`."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give a path, or . for the current folder")
    return Path(text)


def at_least(least: int) -> Callable[[str], int]:
    """The `type` of an argument that is a whole number of so much or more."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) < 2**31):
            raise argparse.ArgumentTypeError(f"{text[:100]!r} is no whole number of {least} or more")
        return int(text)

    return parse


stop_event = threading.Event()  # set when a signal or the time limit asks this run to end
_signals: list[int] = []


def check_stop() -> None:
    """Raise `Stopped` if this run has been asked to end. Long steps call it between batches and chunks."""
    if stop_event.is_set():
        reason = signal.Signals(_signals[0]).name if _signals else "the time limit is reached"
        raise Stopped(f"stopped: {reason}; finished work is kept, the same command goes on from here")


def without_password(text: str) -> str:
    """A text that others may see, like a log, without the password that an address in it may have."""
    return PASSWORD.sub("...@", text)


_warnings: dict[str, list[str]] = {}


def warn(what: str, example: str = "") -> None:
    """Have it said when the run ends: once, with its first example and how many there were."""
    examples = _warnings.setdefault(what, [])
    examples.append("" if examples else example)


def _say_warnings() -> None:
    for what, (example, *others) in _warnings.items():
        first = f", the first {example}" if example else ""
        more = f" (and {len(others):,} more)" if others and example else ""
        say(without_password(f"warning: {what}{first}{more}"))
    _warnings.clear()


def limit_time(seconds: float) -> None:
    """Ask this run to end, with exit code 0, after so many seconds."""
    timer = threading.Timer(seconds, stop_event.set)
    timer.daemon = True
    timer.start()


def run(main: Callable[[], int | None], heeds_signals: bool = True) -> None:
    """Run a command's `main` and exit: 0, its own code, 2 for an `InputError`, 128 + signal after Ctrl-C or SIGTERM.

    A terminal that is closed (SIGHUP) asks it to end as well, except under nohup.

    Args:
        heeds_signals: else they ask nothing of this process, or those that it starts: another one has them too.
    """
    hangup = getattr(signal, "SIGHUP", None)

    def on_signal(number, _frame):
        if _signals:  # asked twice: end at once; files are written beside and renamed, so none is half-made
            os._exit(128 + number)
        if number == hangup:
            _leave_terminal()
        if heeds_signals:
            _signals.append(number)
            stop_event.set()

    _require_output()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal if heeds_signals else signal.SIG_IGN)
    if hangup and signal.getsignal(hangup) == signal.SIG_DFL:
        signal.signal(hangup, on_signal)
    message = None
    try:
        try:
            code = main() or 0
        finally:
            _say_warnings()
        sys.stdout.flush()  # while what goes wrong there can still be said
    except Stopped as stopped:
        message, code = str(stopped), 128 + _signals[0] if _signals else 0
    except InputError as error:
        message, code = f"error: {error}", 2
    except BrokenPipeError:  # who reads the output, like `head`, has seen enough
        code = _cut_output()
    except Exception as error:
        # Libraries in C raise errors of their own kinds, which hold the system's words.
        told = (code for code in (*DISK_FULL, errno.EIO) if os.strerror(code) in str(error))
        reason = getattr(error, "errno", None) or next(told, 0)
        filename = getattr(error, "filename", None)
        where = f" ({filename})" if filename else ""
        if reason in DISK_FULL:
            message = f"error: no space left on the disk{where}; free some and run the same command again"
        elif reason == errno.EIO:
            message = f"error: the disk failed: {os.strerror(reason)}{where}; check it and run the same command again"
        elif reason in UNUSABLE_PATH:
            message = f"error: {os.strerror(reason)}{where}; give another path or change its rights"
        elif filename and (reason in GONE or (reason == errno.ENOENT and _is_gone(filename))):
            message = f"error: {os.strerror(reason)}{where}; is its disk there? Then run the same command again"
        elif reason in (errno.EMFILE, errno.ENFILE):
            message = f"error: {os.strerror(reason)}{where}; raise `ulimit -n` and run the same command again"
        elif isinstance(error, MemoryError) or reason == errno.ENOMEM:
            message = f"error: no memory left ({error}); take smaller batches, parts or images, or a larger machine"
        else:
            raise
        code = 2
    if message:  # only now, when the error has let go of the progress bars and they have wiped themselves away
        print(without_password(" ".join(message.split())), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # which has been said, or comes after an error that has
        _cut_output()
    sys.exit(code)


def _is_gone(path: str | bytes) -> bool:
    """Whether no file can be made where this one was to be.

    Where one can, a file that is not there is a fault of the program, whose traceback has to be seen.
    """
    try:
        with TemporaryFile(dir=os.path.dirname(os.path.realpath(os.fsdecode(path)))):
            return False
    except OSError:
        return True


def _require_output() -> None:
    """Give to nobody what nobody wants to hear, and have any text printed.

    With `>&-` the next file that is opened would be taken for stdout, and be written into. The name of a file may be
    no text at all, and an output may know no more than ASCII.
    """
    for name, descriptor in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _leave_terminal() -> None:
    """Give to nobody what was for a terminal that is gone, where writing would fail."""
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):  # of `apart`, whose 2 is a file, not 1 and 2
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _cut_output() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says so again as it ends
    return 128 + signal.SIGPIPE


def prepare_backend() -> None:
    """Set the environment before Keras is imported, except what the user has set.

    Two inter-op threads and an intra-op thread a core trained EfficientNet-Lite0 1.11 times and ResNet50 1.05 times as
    fast on two cores as one inter-op thread did, with oneDNN (three processes each, in turns).
    oneDNN, which TensorFlow takes by itself on a CPU with AVX512_VNNI or AMX alone, trained EfficientNet-Lite0 1.40
    times as fast on two cores that have only AVX2, and embedded 1.62 times as fast (benchmarks/onednn.py).
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(cores()))
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what goes wrong is an exception too; oneDNN's errors are none
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        with _mute_stderr():
            import tensorflow

            tensorflow.config.list_physical_devices()  # looks for a GPU, which else the first photos would do


@contextmanager
def _mute_stderr() -> Iterator[None]:
    """Hold back what comes on file descriptor 2, where TensorFlow's C++ greets whatever is set; an error gives all."""
    sys.stderr.flush()
    kept = os.dup(2)
    with TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
