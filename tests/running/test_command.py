import errno
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import ROOT

from landmarks.running import command
from landmarks.running.command import InputError, Stopped
from landmarks.running.progress import Progress


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a main; its exit code and what it printed to stderr."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run_main(main):
        with pytest.raises(SystemExit) as ended:
            command.run(main)
        return ended.value.code, capsys.readouterr().err

    return run_main


def failing(error):
    def main():
        raise error

    return main


@pytest.fixture
def refused(run):
    """The one line with which a command ends that fails of this."""

    def line(error):
        code, message = run(failing(error))
        assert (code, message.count("\n")) == (2, 1)
        return message

    return line


def test_an_empty_path_is_not_the_current_folder():
    parser = command.Parser()
    adding = parser.add_subparsers().add_parser("import")
    adding.add_argument("out", type=Path)
    with pytest.raises(InputError, match="argument out: it is empty"):
        parser.parse_args(["import", ""])
    assert parser.parse_args(["import", "."]).out == Path(".")


def test_exit_codes(run, refused, tmp_path):
    assert run(lambda: None) == (0, "")
    assert run(lambda: 1) == (1, "")
    assert run(failing(InputError("what,\n where"))) == (2, "error: what, where\n")
    assert refused(InputError("http://me:word@host/x is gone")) == "error: http://...@host/x is gone\n"
    assert "no space left on the disk (/x/y)" in refused(OSError(errno.ENOSPC, "No space left on device", "/x/y"))
    # What TensorFlow's log writer, and HDF5 when it closes a file, raise for it.
    assert "no space left on the disk;" in refused(
        RuntimeError("Can't close: errno = 27, error message = 'File too large'")
    )
    assert "the disk failed: Input/output error (/x/y)" in refused(OSError(errno.EIO, "Input/output error", "/x/y"))
    assert "/x/y" in refused(PermissionError(errno.EACCES, "Permission denied", "/x/y"))
    assert "No such file or directory (/x/y); is its disk there?" in refused(
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/y")
    )
    refused(OSError(errno.ESTALE, "Stale file handle", str(tmp_path / "x")))
    with pytest.raises(FileNotFoundError):  # where its folder is there, a file of ours that is not is a fault of ours
        run(failing(FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "x"))))
    (tmp_path / "link").symlink_to("/x/y")
    assert run(failing(FileNotFoundError(errno.ENOENT, "No such file or directory", tmp_path / "link")))[0] == 2
    assert "ulimit" in refused(OSError(errno.EMFILE, "Too many open files", "/x/y"))
    assert "no memory left (Unable to allocate 9 TiB)" in refused(MemoryError("Unable to allocate 9 TiB"))


@pytest.mark.parametrize("lines", [1, 100_000])  # what waits in the buffer until the end, and what is written before
def test_output_that_nobody_reads_on(lines):
    program = f"from landmarks.running import command; command.run(lambda: print('line\\n' * {lines}))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + 13, "")


def test_outputs_that_are_closed_get_nothing_and_lend_their_numbers_to_no_file(tmp_path):
    program = """
import os, sys
from landmarks.running import command
from landmarks.running.progress import Progress
def main():
    with open(sys.argv[1], "w") as file, command._mute_stderr():
        os.write(1, b"said on 1")
        os.write(2, b"said on 2")
        print("said", *Progress(range(2)))
    command.warn("warned")
command.run(main)
"""
    command_line = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program, tmp_path / "file"]
    assert subprocess.run(command_line, cwd=ROOT).returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_any_text_is_printed():
    program = "from landmarks.running import command; command.run(lambda: print('caf\\udce9', '\u65e5'))"
    for encoding, printed in (("utf-8", "caf\\udce9 \u65e5\n".encode()), ("ascii", b"caf\\udce9 \\u65e5\n")):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True)
        assert (done.returncode, done.stdout) == (0, printed), done.stderr.decode()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # Linux, as in CI, always has it
def test_output_that_finds_no_room_is_one_clear_line():
    program = "from landmarks.running import command; command.run(lambda: print('line'))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "no space left on the disk" in done.stderr


def test_an_error_stands_on_a_line_of_its_own_after_progress_bars(run):
    def main():
        for _ in Progress(range(9), mininterval=0):
            for _ in Progress(range(9), mininterval=0, leave=False):
                raise InputError("wrong")

    _, message = run(main)
    assert message.endswith("\nerror: wrong\n")


def test_warnings_come_once_at_the_end(run):
    def main():
        for number in range(3):
            command.warn("photos were passed over", f"photo {number}")
            command.warn("the clock is wrong")
        raise InputError("wrong")

    assert run(main) == (
        2,
        "warning: photos were passed over, the first photo 0 (and 2 more)\nwarning: the clock is wrong\nerror: wrong\n",
    )
    assert run(lambda: None) == (0, "")


def test_what_tensorflow_says_is_kept_for_an_error(capfd):
    with command._mute_stderr():
        os.write(2, b"greetings")
    assert capfd.readouterr().err == ""
    with pytest.raises(ImportError), command._mute_stderr():
        os.write(2, b"what is wrong")
        raise ImportError
    assert capfd.readouterr().err == "what is wrong"


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        command.run(failing(ZeroDivisionError()))


def test_the_time_limit_ends_a_run_with_exit_code_0(run):
    def main():
        command.limit_time(0.05)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            command.check_stop()
            time.sleep(0.01)

    code, message = run(main)
    assert code == 0
    assert "the time limit is reached" in message


def test_signals_ask_to_stop_and_a_second_one_ends_at_once():
    program = """
import os, signal, sys, time
from landmarks.running import command
def main():
    os.kill(os.getpid(), signal.SIGINT)
    if "twice" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print("tidied up", flush=True)
    command.check_stop()
command.run(main)
"""
    for arguments, code, printed in (((), 130, "tidied up\n"), (("twice",), 128 + 15, "")):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (code, printed)


def test_check_stop_is_silent_until_asked():
    command.check_stop()
    command.stop_event.set()
    with pytest.raises(Stopped):
        command.check_stop()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of Unix here")  # Linux, as in CI, always has them
@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_closed_asks_to_stop_except_under_nohup(tmp_path, nohup):
    program = """
import os, sys
from contextlib import suppress
from pathlib import Path
from landmarks.running import command
from landmarks.running.said import say
def main():
    Path("begun").touch()
    with suppress(OSError):
        os.read(0, 1)  # until the terminal is closed
    for _ in range(2):
        print("going on", flush=True)
        say("and so is what is said")
    Path("told").write_text("asked" if command.stop_event.is_set() else "not asked")
    command.check_stop()
command.run(main)
"""
    terminal, side = os.openpty()
    output = subprocess.DEVNULL if nohup else side

    def begin() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=side, stdout=output, stderr=output, start_new_session=True, preexec_fn=begin,
    ) as process:  # fmt: skip
        os.close(side)
        while process.poll() is None and not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.close(terminal)
    assert process.returncode == (0 if nohup else 128 + 1)
    assert (tmp_path / "told").read_text() == ("not asked" if nohup else "asked")
