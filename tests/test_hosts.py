"""recognition.py on two hosts, two processes on loopback: to the end, stopped by one of them, and with one killed."""

import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import impatient
import pandas as pd
import pytest
import scripts
from networks.test_hosts import free_port

pytestmark = pytest.mark.skipif(find_spec("jax") is None, reason="pip install jax")
SECONDS = 600  # that a run may take, at most


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """As a file: the training runs in a process of its own, where Keras has no backbone of tests."""
    import keras

    photos = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=4)(keras.layers.Rescaling(1 / 127.5, -1)(photos))
    path = tmp_path_factory.mktemp("backbone") / "tiny.keras"
    keras.Model(photos, keras.layers.ReLU()(x)).save(path)
    return path


class Hosts:
    """Both hosts of a run, that have been started; the second one has a disk of its own."""

    def __init__(self, mirror: Path, folder: Path, backbone: Path, epochs: int, *settings: str):
        given = [
            f"--mirror={mirror}", f"--backbone={backbone}", "--weights=none", "--image-size=32", "--crop=1",
            "--batch-size=4", f"--epochs={epochs}", "--learning-rate=0.01", "--loss=arcface", "--head-parts=4",
            "--embedding-size=8", "--optimizer=sgd", *settings, *scripts.PLAIN,
        ]  # fmt: skip
        self.works = [folder / "first", folder / "second"]
        address, pipe = f"127.0.0.1:{free_port()}", subprocess.PIPE
        self.processes = [
            subprocess.Popen(
                [sys.executable, impatient.__file__, f"--work={work}", f"--hosts={address},2,{number}", *given],
                env=scripts.jax(2), stdout=pipe, stderr=pipe, text=True,
            )
            for number, work in enumerate(self.works)
        ]  # fmt: skip

    def after(self, rows: int) -> None:
        """Wait until so many rounds are finished."""
        path = self.works[0] / "training.csv"
        deadline = time.monotonic() + SECONDS
        while not (path.exists() and path.stat().st_size > 1 and len(pd.read_csv(path)) >= rows):
            assert time.monotonic() < deadline and self.processes[0].poll() is None, self.processes[0].communicate()
            time.sleep(0.02)

    def end(self, seconds: float = SECONDS) -> list[tuple[int, str, str]]:
        """How both end: code and outputs."""
        outputs = [process.communicate(timeout=seconds) for process in self.processes]
        return [(process.returncode, out, said) for process, (out, said) in zip(self.processes, outputs, strict=True)]


def test_killed_stopped_and_to_the_end(tiny_mirror, tmp_path, backbone):
    run = tiny_mirror, tmp_path, backbone, 8
    first, second = tmp_path / "first", tmp_path / "second"
    started = Hosts(*run)
    started.after(2)
    started.processes[1].kill()
    killed_at = time.monotonic()
    (code, _, said), _ = started.end()
    assert time.monotonic() - killed_at < 6 * impatient.SILENT_SECONDS
    assert code == 2 and said.splitlines()[-1].startswith("error: the hosts broke off"), said
    assert "the same command, on all hosts, goes on" in said and "Traceback" not in said
    before = pd.read_csv(first / "training.csv")

    started = Hosts(*run)
    started.after(len(before) + 1)
    started.processes[1].send_signal(signal.SIGTERM)
    (code, _, said), (other, _, other_said) = started.end()
    assert (code, other) == (0, 128 + signal.SIGTERM), said + other_said
    assert "another host" in said and "SIGTERM" in other_said
    stopped = pd.read_csv(first / "training.csv")
    pd.testing.assert_frame_equal(stopped.head(len(before)), before)  # finished rounds were not redone

    (code, out, said), (other, other_out, other_said) = Hosts(*run).end()
    assert (code, other) == (0, 0), said + other_said
    assert "host 1 is done" in other_out and not (second / "hosts/1").exists()
    assert len(pd.read_csv(first / "recognition.csv")) == len(pd.read_csv(tiny_mirror / "metadata/test.csv"))
    history = pd.read_csv(first / "training.csv")
    pd.testing.assert_frame_equal(history.head(len(stopped)), stopped)
    assert history["mini_epoch"].tolist() == list(range(2, 41, 2))  # of 8 epochs of 5 shards, two at a time
    assert history["validation_gap"].notna().all()
