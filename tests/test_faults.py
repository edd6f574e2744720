"""Both scripts where something is wrong: damaged shards, one shard alone, two runs at once, a mirror that has moved."""

import json
import os
import shutil
import signal

import pandas as pd
import pytest
import scripts
from conftest import ROOT

from landmarks.running.features_file import load_features

SETTINGS = [
    *scripts.PLAIN, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=8", "--epochs=1",
    "--learning-rate=3e-3",
]  # fmt: skip


def run(script, work, *arguments, **options):
    return scripts.run(ROOT / script, f"--work={work}", *arguments, **options)


def both(work, *arguments):
    for script in ("recognition.py", "retrieval.py"):
        done = run(script, work, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]


def rows(work, name):
    return pd.read_csv(work / f"{name}.csv", keep_default_na=False).set_index("id").iloc[:, 0]


@pytest.fixture
def damaged(tiny_mirror, tmp_path):
    """A mirror that has a cut shard in each split."""
    shutil.copytree(tiny_mirror, tmp_path / "damaged")
    for shard in ("train/images_001", "index/images_000", "test/images_001"):
        path = tmp_path / f"damaged/{shard}.tar"
        path.write_bytes(path.read_bytes()[:3000])
    return tmp_path / "damaged"


@pytest.mark.parametrize("at_a_url", [False, True])
def test_a_damaged_shard_costs_no_run(damaged, serve, tmp_path, at_a_url):
    work = tmp_path / "work"
    both(work, f"--mirror={serve(damaged).url if at_a_url else damaged}", *SETTINGS)
    skipped = pd.read_csv(work / "skipped.csv")
    assert sorted(skipped["split"]) == ["index", "test", "train"]
    assert set(skipped["name"]) == {"images_000.tar", "images_001.tar"}
    assert skipped["reason"].str.contains("damaged: cut .* photos before that are used").all()
    read = {i for path in work.glob("features/test/*.npz") for i in load_features(path).ids.tolist()}
    listed = pd.read_csv(damaged / "metadata/test.csv")["id"]
    assert 0 < len(read) < len(listed)
    for name in ("recognition", "retrieval"):
        assert rows(work, name).index.tolist() == listed.tolist()
        assert {i for i, cell in rows(work, name).items() if cell} == read


def test_strict_ends_at_the_first_damaged_shard(damaged, tmp_path):
    done = run("recognition.py", tmp_path / "work", f"--mirror={damaged}", *SETTINGS, "--strict")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: damaged shard")]


def test_defaults_work_on_one_shard_and_score_by_a_given_solution(tiny_mirror, tmp_path):
    shutil.copytree(tiny_mirror, tmp_path / "small", ignore=shutil.ignore_patterns("ground_truth", "images_00[1-9].*"))
    mirror, work = f"--mirror={tmp_path / 'small'}", tmp_path / "work"
    wrong = run("recognition.py", work, mirror, *SETTINGS, "--min-images=9")
    assert wrong.returncode == 2 and "--min-images" in wrong.stderr
    solutions = tiny_mirror / "ground_truth"
    for script, task in (("recognition.py", "recognition"), ("retrieval.py", "retrieval")):
        done = run(script, work, mirror, *SETTINGS, f"--solution={solutions}/{task}_solution_v2.1.csv")
        assert done.returncode == 0, done.stderr[-3000:]  # what was wrong binds nobody
        assert (work / f"{task}.metrics.json").exists()
    assert len(pd.read_csv(work / "training.csv")) == 1


def test_a_second_run_in_the_same_folder_is_told_who_is_there(tiny_mirror, tmp_path):
    work, told = tmp_path / "work", []

    def meanwhile(process):
        while not (work / ".lock.json").exists() or not (work / ".lock.json").read_text():
            pass
        os.kill(process, signal.SIGSTOP)
        told.append(run("recognition.py", work, f"--mirror={tiny_mirror}", *SETTINGS, fork=False))
        os.kill(process, signal.SIGCONT)

    done = run("recognition.py", work, f"--mirror={tiny_mirror}", *SETTINGS, meanwhile=meanwhile)
    assert done.returncode == 0, done.stderr[-3000:]
    (second,) = told
    assert second.returncode == 2
    assert "work is in use by recognition.py, process" in second.stderr.splitlines()[-1]
    assert json.loads((work / "recognition.metrics.json").read_text())


def test_a_mirror_that_has_moved_goes_on(tiny_mirror, serve, tmp_path):
    work = tmp_path / "work"
    done = run("recognition.py", work, f"--mirror={serve(tiny_mirror).url}", *SETTINGS)
    assert done.returncode == 0, done.stderr[-3000:]
    made = {path: path.stat().st_mtime_ns for path in work.glob("features/*/*.npz")}
    shutil.copytree(tiny_mirror, tmp_path / "attached")
    for script in ("recognition.py", "retrieval.py"):
        done = run(script, work, f"--mirror={tmp_path / 'attached'}")
        assert done.returncode == 0, done.stderr[-3000:]
    assert made.items() <= {path: path.stat().st_mtime_ns for path in work.glob("features/*/*.npz")}.items()


def test_what_is_wrong_is_said_before_the_sample_is_rendered(tmp_path):
    for wrong, message in {
        "--backbone=Tini": "did you mean Tiny",
        "--weights=gone.h5": "gone.h5",
        "--clean=gone.csv": "gone.csv",
        "--non-landmarks=gone.txt": "gone.txt",
        "--solution=gone.csv": "gone.csv",
    }.items():
        penalty = ["--penalty=published"] if "non-landmarks" in wrong else []
        done = run("recognition.py", tmp_path / "work", wrong, *penalty)
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr[-1000:]
    assert not (tmp_path / "work/mirror").exists()
