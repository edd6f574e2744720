"""A part of a command in a process of its own: how it ends, and that it ends with the command."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from landmarks.running import apart, command
from landmarks.running.command import InputError, Stopped


def give(value):
    return value, os.getpid()


def refuse():
    raise InputError("give another one")


def fail():
    raise KeyError("a bug")


def die():
    os.write(2, b"said by a library")
    os.abort()


def wait_to_be_asked():
    os.kill(os.getpid(), signal.SIGTERM)  # as one that is sent to a whole group
    assert apart.asked.wait(60)
    raise Stopped("asked")


def wait_for_ever(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def test_what_the_job_returns_comes_from_another_process():
    value, process = apart.run(give, [1, "2"])
    assert value == [1, "2"] and process != os.getpid()


def test_an_error_is_told_there_and_ends_the_command_in_the_same_way(capfd):
    with pytest.raises(SystemExit) as end:
        apart.run(refuse)
    assert end.value.code == 2 and capfd.readouterr().err == "error: give another one\n"
    with pytest.raises(SystemExit) as end:
        apart.run(fail)
    assert end.value.code == 1 and "KeyError: 'a bug'" in capfd.readouterr().err


def test_what_a_library_says_as_it_dies_is_held_back(capfd):
    with pytest.raises(apart.Died, match="said by a library"):
        apart.run(die)
    assert capfd.readouterr().err == ""


def test_a_job_is_asked_to_end_where_its_command_is(monkeypatch):
    monkeypatch.setattr(apart, "stop_event", type(command.stop_event)())
    apart.stop_event.set()
    with pytest.raises(Stopped, match="asked"):
        apart.run(wait_to_be_asked)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_job_ends_with_a_command_that_is_killed(tmp_path):
    note = tmp_path / "process"
    parent = os.fork()
    if parent == 0:
        apart.run(wait_for_ever, str(note))
        os._exit(0)
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    process = Path("/proc") / note.read_text()
    while process.exists() and "State:\tZ" not in (process / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
