import math
import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT

from landmarks.running.threads import cores, in_background, in_threads, quota


def groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return folder / "cgroup", folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/../sibling\n", {"cpu.max": "300000 100000\n"}, 3),
        ("3:cpu,cpuacct:/docker/x\n2:cpuset:/y\n0::/\n",
         {"cpu/docker/x/cpu.cfs_quota_us": "400000\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"}, 4),
        ("3:cpu,cpuacct:/docker/x\n",  # as a container sees it: the root is its own group
         {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("2:cpuset:/y\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ],
)  # fmt: skip
def test_the_quota_of_a_control_group(tmp_path, own, files, expected):
    assert quota(*groups(tmp_path, own, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert quota(tmp_path, tmp_path / "own") == math.inf


@pytest.mark.parametrize(("share", "expected"), [(0.1, 1), (1.0, 1), (1.5, 2)])
def test_a_quota_counts_as_whole_cores(monkeypatch, share, expected):
    from landmarks.running import threads

    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)
    monkeypatch.setattr(threads, "quota", lambda: share)
    assert cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_affinity_counts_and_the_threads_of_tensorflow_and_faiss_follow():
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from landmarks.running import command, threads; command.prepare_backend();"
        "import faiss; from landmarks.neighbours import search;"
        "print(threads.cores(), os.environ['TF_NUM_INTRAOP_THREADS'], faiss.omp_get_max_threads())"
    )
    given = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "OMP_"))}
    environment = given | {"OMP_NUM_THREADS": "7", "KERAS_BACKEND": "numpy"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1", "1"], done.stderr


def test_in_threads_keeps_the_order_and_stays_within_its_bound():
    begun, taken = [], 0

    def slow_first(item):
        begun.append(item)
        time.sleep(0.02 if item % 5 == 0 else 0)
        return item * 2

    for result in in_threads(slow_first, range(40), ahead=6, threads=3):
        assert result == taken * 2
        taken += 1
        assert len(begun) <= taken + 6
    assert taken == 40


def test_in_threads_raises_what_the_function_raises_and_stops():
    before = threading.active_count()
    begun = []

    def fails(item):
        begun.append(item)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(in_threads(fails, range(1000), ahead=4))
    assert len(begun) < 20
    assert threading.active_count() == before


def test_in_background_is_ahead_of_who_takes_and_keeps_the_order():
    made = []

    def items():
        for number in range(20):
            made.append(number)
            yield number

    with closing(in_background(items(), ahead=3)) as background:
        taken = next(background)
        time.sleep(0.1)
        assert taken == 0 and len(made) == 5  # one taken, three waiting, one that finds no room
        assert list(background) == list(range(1, 20))


def test_in_background_raises_what_making_an_item_raises_where_it_would_have_come():
    def items():
        yield 1
        raise ZeroDivisionError

    background = in_background(items(), ahead=5)
    assert next(background) == 1
    with pytest.raises(ZeroDivisionError):
        next(background)


def test_a_closed_in_background_makes_no_more():
    before = threading.active_count()
    made = []
    background = in_background((made.append(number) for number in range(1000)), ahead=1)
    next(background)
    background.close()
    assert len(made) < 10
    assert threading.active_count() == before
