"""A part of a command in a process of its own, whose breakdown the command survives, and tells of."""

import multiprocessing
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

from landmarks.running import command
from landmarks.running.command import Stopped, check_stop, stop_event

LOOK_SECONDS = 0.1  # between two looks whether this command has been asked to end
SAID = 2000  # characters of what a library said last

asked = threading.Event()  # in such a process: its command has been asked to end


class Died(Exception):
    """A signal ended the process, as libraries in C do where they know no way on; with what they said last."""


def run(job: Callable[..., Any], *arguments: Any) -> Any:
    """What `job` returns in a spawned process, which prints what it prints here.

    It is told by `asked` when this command is to end, and ends with it, even by kill -9. What C libraries write to file
    descriptor 2 there is held back.

    Args:
        job: of a module's top level, as are its arguments' types; they are pickled.

    Raises:
        Stopped: the job has raised it.
        SystemExit: the job has ended with an error, which the process has told in the words of any command.
        Died: see there.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.NamedTemporaryFile() as said:
        process = context.Process(target=_begin, args=(there, said.name, job, arguments))
        process.start()
        there.close()
        told = False
        while not here.poll(LOOK_SECONDS):
            if stop_event.is_set() and not told:
                told = True
                with suppress(OSError):  # it has just ended
                    here.send(None)
        try:
            ended, value = here.recv()
        except (EOFError, OSError):
            ended, value = "", None
        process.join()
        if ended == "done":
            return value
        if ended == "stopped":
            check_stop()  # which tells the reason, where this command was asked
            raise Stopped(value)
        if (process.exitcode or 0) > 0:
            sys.exit(process.exitcode)
        raise Died(said.read().decode(errors="replace")[-SAID:])


def _begin(pipe: Connection, said: str, job: Callable, arguments: tuple) -> None:
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    tqdm.set_lock(threading.RLock())  # its own one, for processes, would be found left over
    threading.Thread(target=_listen, args=(pipe,), daemon=True).start()
    code: Any = 1
    try:
        command.run(partial(_work, pipe, job, arguments), heeds_signals=False)  # sent to a whole group, as they are
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # what is left open waits for nobody: libraries would, for other hosts


def _listen(pipe: Connection) -> None:
    try:
        while True:
            pipe.recv()
            asked.set()
    except (EOFError, OSError):  # the command has been killed
        os._exit(1)


def _work(pipe: Connection, job: Callable, arguments: tuple) -> None:
    try:
        pipe.send(("done", job(*arguments)))
    except Stopped as stopped:
        pipe.send(("stopped", str(stopped)))
