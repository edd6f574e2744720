"""A run ends early: killed, by its time limit, by bad input or a full disk."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import scripts
from conftest import make_mirror
from small_run import SETTINGS, run


def test_kill_at_any_time_and_go_on(tiny_mirror, tmp_path):
    work = tmp_path / "work"
    settings = [f"--mirror={tiny_mirror}", *SETTINGS, "--epochs=10"]
    rows = 0
    for kill, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 128 + 15), (signal.SIGKILL, -9)):

        def after_a_mini_epoch(process, rows=rows, kill=kill):
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                if (work / "training.csv").exists() and len(pd.read_csv(work / "training.csv")) > rows:
                    break
                time.sleep(0.02)
            os.kill(process, kill)

        done = run("recognition.py", work, *settings, check=False, meanwhile=after_a_mini_epoch)
        assert done.returncode == code, done.stderr[-3000:]
        if kill == signal.SIGTERM:
            assert "the same command goes on from here" in done.stderr
        before = pd.read_csv(work / "training.csv")
        assert len(before) > rows
        rows = len(before)
    for path in work.glob("part-*"):
        assert path.stem not in ("recognition", "model")
    run("recognition.py", work)
    history = pd.read_csv(work / "training.csv")
    pd.testing.assert_frame_equal(history.head(rows), before)  # finished mini-epochs were not redone
    assert history["mini_epoch"].tolist() == list(range(1, 51))
    run("retrieval.py", work)
    for task in ("recognition", "retrieval"):
        assert len(pd.read_csv(work / f"{task}.csv")) == len(pd.read_csv(tiny_mirror / "metadata/test.csv"))


def test_a_time_limit_ends_cleanly_and_says_how_to_go_on(tiny_mirror, tmp_path):
    work = tmp_path / "work"
    done = run("recognition.py", work, f"--mirror={tiny_mirror}", *SETTINGS, "--time-limit=0.001")
    assert "the time limit is reached" in done.stderr
    assert "the same command goes on from here" in done.stderr
    assert not (work / "recognition.csv").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A folder that 3 MB fill up."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount the small disk that this fills")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_bad_input_is_one_clear_line_and_exit_code_2(finished, tiny_mirror, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    bad_csv = make_mirror(tmp_path / "bad_csv")
    (bad_csv / "metadata/train.csv").write_text("id,landmark\na,1\n")
    mirror = f"--mirror={tiny_mirror}"
    cases = [
        ("recognition.py", tmp_path / "a", ["--mirror=http://127.0.0.1:9"], "check host and port"),
        ("recognition.py", tmp_path / "a", [f"--mirror={tmp_path}"], "no mirror"),
        ("recognition.py", tmp_path / "a", [f"--mirror={bad_csv}", *SETTINGS], "landmark_id"),
        ("recognition.py", tmp_path / "b", [mirror, *SETTINGS, "--min-images=99"], "--min-images"),
        ("recognition.py", tmp_path / "c", [mirror, *SETTINGS, "--backbone=ResNet51"], "ResNet51"),
        ("recognition.py", tmp_path / "d", [mirror, *SETTINGS, "--solution=gone.csv"], "gone.csv cannot be read"),
        ("recognition.py", tmp_path / "d", [mirror, *SETTINGS, "--clean=gone.csv"], "gone.csv cannot be read"),
        ("recognition.py", tmp_path / "d", ["--backbone=Tini"], "did you mean Tiny"),
        ("recognition.py", tmp_path / "e", [mirror, *SETTINGS, "--epochs=none"], "--epochs"),
        ("recognition.py", occupied, [mirror, *SETTINGS], "occupied"),
        ("recognition.py", Path("/proc/nowhere"), [mirror, *SETTINGS], "/proc/nowhere cannot be written"),
        ("recognition.py", finished, ["--backbone=VGG16"], "another --work"),
        ("retrieval.py", tmp_path / "f", [mirror], "recognition.py"),
        ("retrieval.py", finished, ["--no-such-setting"], "no-such-setting"),
        ("retrieval.py", Path(f"{finished},{tmp_path}/g"), [], "no trained model"),
        ("recognition.py", finished, ["--penalty=winners", f"--non-landmarks={occupied}"], "occupied"),
    ]
    for script, work, arguments, message in cases:
        done = run(script, work, *arguments, check=False)
        assert done.returncode == 2, (arguments, done.stderr[-2000:])
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.stderr
        assert message in errors[0]
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("*/*.csv.part")) and not (work / "model.keras").exists() or work == finished


def test_a_full_disk_is_one_clear_line(tiny_mirror, small_disk):
    large = "--embedding-size=100000"
    done = run("recognition.py", small_disk / "work", f"--mirror={tiny_mirror}", *SETTINGS, large, check=False)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "no space left" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(small_disk.rglob("*.keras"))


def test_the_scripts_leave_the_user_his_settings_of_tensorflow():
    program = "import os; from landmarks.running import command; command.prepare_backend();"
    program += "print(os.environ['TF_NUM_INTEROP_THREADS'], os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    given_and_expected = (
        ({}, "2 1"), ({"TF_NUM_INTEROP_THREADS": "5"}, "5 1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "2 0")
    )  # fmt: skip
    for given, expected in given_and_expected:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")} | given
        done = scripts.run("-c", program, environment=environment)
        assert done.stdout.strip() == expected, done.stderr
