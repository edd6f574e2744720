"""A part of a command in a process of its own: how it ends, and that it ends with the command."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from landmarks.running import apart, command
from landmarks.running.command import InputError, Stopped
from landmarks.running.said import say


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


def go_on_without_a_terminal(folder):
    (folder / "begun").touch()
    while not (folder / "closed").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGHUP)
    for _ in range(2):
        print("going on", flush=True)
        say("and so is what is said")
    command.check_stop()  # which is for the command to say
    return "went on"


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


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of Unix here")  # Linux, as in CI, always has them
def test_a_terminal_that_is_closed_is_the_command_s_to_heed(tmp_path):
    terminal, side = os.openpty()

    def close():
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.close(terminal)
        (tmp_path / "closed").touch()

    threading.Thread(target=close, daemon=True).start()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    try:
        for descriptor in (1, 2):
            os.dup2(side, descriptor)
        assert apart.run(go_on_without_a_terminal, tmp_path) == "went on"
    finally:
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
        os.close(side)


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
