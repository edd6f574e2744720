"""kill -9 at every stage of both scripts, before and after a file gets its name: they end as if nothing had been."""

import signal

import scripts
from conftest import ROOT

SETTINGS = [
    *scripts.PLAIN, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=8", "--epochs=1",
    "--bottleneck-epochs=1", "--verify=lower", "--extractor=sift", "--query-expansion=1",
]  # fmt: skip

# Runs a script and dies when a file whose path ends like the given one is renamed, at the n-th such time.
PROGRAM = """
import os, runpy, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
ending, when, count, replace = sys.argv[2], sys.argv[3], int(sys.argv[4]), os.replace

def rename(source, target):
    global count
    count -= Path(target).match(ending)
    if count == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = rename
del sys.argv[2:5]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
MOMENTS = {
    "recognition.py": [
        ("recipe.toml", "before", 1), ("labels.csv", "after", 1), ("validation/*.tar", "after", 1),
        ("top/*.npz", "after", 2), ("top/checkpoint.keras", "before", 2), ("work/checkpoint.keras", "after", 1),
        ("work/checkpoint.keras", "before", 2), ("model.keras", "before", 1), ("model.keras", "after", 1),
        ("features/test/*.npz", "before", 2), ("features/train/*.npz", "after", 3),
        ("features/index/*.npz", "after", 1),  # whose photos of no landmark tell how sure scores are
        ("neighbours/*/*.npz", "before", 1), ("neighbours/*/*.npz", "after", 2), ("local/sift/*/*.npz", "before", 2),
        ("verification.csv", "after", 1), ("calibration.json", "before", 1), ("recognition.csv", "before", 1),
        ("recognition.metrics.json", "before", 1),
    ],
    "retrieval.py": [
        ("expanded/test/*.npz", "before", 1), ("neighbours/*/*.npz", "after", 1),
        ("retrieval.csv", "before", 1), ("retrieval.metrics.json", "before", 1),
    ],
}  # fmt: skip


def test_killed_at_every_stage_both_scripts_end_the_same(tiny_mirror, tmp_path):
    whole, killed = tmp_path / "whole/work", tmp_path / "killed/work"
    for script, moments in MOMENTS.items():
        arguments = [f"--mirror={tiny_mirror}", *SETTINGS]
        scripts.run(ROOT / script, f"--work={whole}", *arguments, fork=False).check_returncode()
        for ending, when, count in moments:
            done = scripts.run("-c", PROGRAM, ROOT / script, ending, when, count, f"--work={killed}", *arguments)
            assert done.returncode == -signal.SIGKILL, (ending, done.returncode, done.stderr[-2000:])
        scripts.run(ROOT / script, f"--work={killed}", *arguments).check_returncode()
    for name in ("recognition.csv", "verification.csv", "retrieval.csv", "retrieval.metrics.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(killed.rglob("part-*"))
