"""Both scripts with a random small network, which takes seconds."""

import subprocess
from pathlib import Path

import scripts
from conftest import ROOT

SETTINGS = [
    *scripts.PLAIN, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=8", "--epochs=2",
    "--learning-rate=3e-3",
]  # fmt: skip


def run(script: str, work: Path, *arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess:
    done = scripts.run(ROOT / script, f"--work={work}", *arguments, **options)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def times(work: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [*work.glob("features/*/*.npz"), work / "model.keras"]}


def finish(mirror: Path, work: Path) -> Path:
    """Run both scripts in the work folder."""
    run("recognition.py", work, f"--mirror={mirror}", *SETTINGS)
    run("retrieval.py", work)
    return work
