import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from landmarks.running.command import InputError
from landmarks.running.locks import HOLDER, LOCK, held, require_idle

HOLD = """
import sys, time
from pathlib import Path
from landmarks.running.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "folder"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_told_who_holds_the_folder(holder, tmp_path):
    with pytest.raises(
        InputError, match=f"folder is in use by -c, process {holder.pid} on .* since 20.*another folder"
    ):
        with held(tmp_path / "other", tmp_path / "folder"):
            pytest.fail("two hold it")
    with held(tmp_path / "other"):  # which it let go of
        pass
    with pytest.raises(InputError, match=f"being written by -c, process {holder.pid} "):
        require_idle(tmp_path / "folder")


def test_what_a_killed_process_held_is_free(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "folder" / HOLDER).exists()
    require_idle(tmp_path / "folder")
    with held(tmp_path / "folder"):
        assert json.loads((tmp_path / "folder" / HOLDER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "folder" / HOLDER).exists()


def test_a_damaged_note_of_the_holder_is_no_harm(holder, tmp_path):
    (tmp_path / "folder" / HOLDER).write_text("{")
    with pytest.raises(InputError, match="in use by another process"):
        with held(tmp_path / "folder"):
            pass


def test_many_readers_look_at_the_same_time(tmp_path):
    with held(tmp_path):
        pass
    program = "import sys; from pathlib import Path; from landmarks.running.locks import require_idle\n"
    program += "for _ in range(300): require_idle(Path(sys.argv[1]))"
    readers = [subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT) for _ in range(3)]
    assert [reader.wait(60) for reader in readers] == [0, 0, 0]


def test_a_folder_that_nobody_can_write_needs_no_lock(tmp_path):
    began = time.monotonic()
    require_idle(tmp_path)
    assert not (tmp_path / LOCK).exists() and time.monotonic() - began < 1
