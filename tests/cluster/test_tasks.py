"""On a cluster of several nodes, all on this machine: the files are the same bytes as without one."""

import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import make_mirror

from landmarks.cluster import tasks
from landmarks.cluster.worker import _own_folder
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.shards import write_tar
from landmarks.running import command
from landmarks.running.command import InputError, Stopped
from landmarks.running.settings import MirrorSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray and what it takes, in its own processes and threads

GPU_NODE, CPU_NODE, HEAD = ({"GPU": 4.0, "CPU": 18.0}, {"CPU": 8.0}, {"memory": 1.0})


def nodes(*resources: dict) -> list[dict]:
    return [{"Alive": True, "Resources": one} for one in resources]


@pytest.mark.parametrize(
    ("there", "device", "count"),
    [
        (nodes(HEAD, CPU_NODE, CPU_NODE), {"num_cpus": 8}, 2),
        (nodes(CPU_NODE, {"CPU": 17.0}), {"num_cpus": 8}, 3),
        (nodes(HEAD, GPU_NODE, CPU_NODE, GPU_NODE), {"num_gpus": 1, "num_cpus": 4}, 8),
        ([*nodes(CPU_NODE), {"Alive": False, "Resources": GPU_NODE}], {"num_cpus": 8}, 1),
    ],
)
def test_a_device_is_a_gpu_or_as_many_cores_as_any_node_has(there, device, count):
    assert tasks.devices(there) == (device, count)


def test_a_cluster_of_no_device_is_refused():
    with pytest.raises(InputError, match="add a node"):
        tasks.devices(nodes(HEAD))


@pytest.mark.parametrize("value", ["0", "1"])
def test_a_worker_has_onednn_where_this_machine_has_it(monkeypatch, value):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", value)
    assert tasks.options({"num_cpus": 2}, 1)["runtime_env"]["env_vars"]["TF_ENABLE_ONEDNN_OPTS"] == value


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    tasks.require("")
    with pytest.raises(InputError, match="pip install -r requirements-cluster.txt"):
        tasks.require("auto")


def test_a_folder_of_a_process_that_was_killed_goes_and_that_of_a_living_one_stays(tmp_path):
    one, lock = _own_folder(tmp_path)
    dead, of_dead = _own_folder(tmp_path)
    (dead / "images_000.tar").touch()
    of_dead.release()
    other, of_other = _own_folder(tmp_path)
    assert one.exists() and other.exists() and not dead.exists()
    for held in (lock, of_other):
        held.release()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """A mirror of eight test shards of five photos each."""
    out = make_mirror(tmp_path_factory.mktemp("mirror") / "many", test=12)
    mirror = FolderMirror(out)
    shards = mirror.stream("test", mirror.shard_names("test"))
    photos = [(one, shard.read(one)) for shard in shards for one in shard.ids]
    for number in range(8):
        write_tar(out / f"test/images_{number:03d}.tar", photos[number * 5 : number * 5 + 5])
    for path in (out / "md5sum/test").iterdir():
        path.unlink()
    return out


def listing(log: Path, hook=None):
    """What opens a job that writes the ids of a shard, and notes each time that it does; `hook` is called before."""

    def job(mirror, shard, path, work):
        with open(log, "a") as file:
            file.write(f"{shard.name}\n")
        if hook:
            hook(shard.name)
        path.write_bytes("\n".join(shard.ids).encode())
        (work / "skipped.csv").write_text(f"split,shard,name,reason\ntest,{shard.name},\\xe9,why\n")

    return job


def share(cluster, mirror, tmp_path, hook=None) -> tuple[dict[str, Path], Path]:
    """Have all test shards listed; the files, and the note of what was done."""
    files = {name: tmp_path / f"{name}.txt" for name in mirror.shard_names("test")}
    log = tmp_path / "log"
    tasks.share(cluster.address, partial(listing, log, hook), mirror, "test", files, tmp_path, "list")
    return files, log


def require_whole(files: dict[str, Path], mirror: FolderMirror) -> None:
    for name, path in files.items():
        assert path.read_text().splitlines() == mirror.shard_ids("test", name)


def test_each_shard_becomes_its_file_once_and_what_was_passed_over_is_noted_here(cluster, shards, tmp_path):
    mirror = FolderMirror(shards)
    files, log = share(cluster, mirror, tmp_path)
    require_whole(files, mirror)
    assert sorted(log.read_text().split()) == sorted(files)
    skipped = (tmp_path / "skipped.csv").read_text().splitlines()[1:]
    assert sorted(skipped) == [f"test,{name},\\xe9,why" for name in files]


def test_a_task_that_fails_is_done_again(cluster, shards, tmp_path):
    def fail_first(name):
        mark = tmp_path / f"failed-{name}"
        if not mark.exists():
            mark.touch()
            raise RuntimeError("once")

    files, log = share(cluster, mirror := FolderMirror(shards), tmp_path, fail_first)
    require_whole(files, mirror)
    assert sorted(log.read_text().split()) == sorted([*files, *files])


def test_a_process_that_dies_is_started_again(cluster, shards, tmp_path):
    def die_first(name):
        mark = tmp_path / "died"
        if name == "images_003" and not mark.exists():
            mark.touch()
            os._exit(1)

    files, log = share(cluster, mirror := FolderMirror(shards), tmp_path, die_first)
    require_whole(files, mirror)
    assert len(log.read_text().split()) <= len(files) + 2 * 2  # those in hand


def test_a_task_that_always_fails_ends_the_run_in_a_line_and_what_is_done_stays(cluster, shards, tmp_path):
    def fail(name):
        if name == "images_005":
            raise RuntimeError("no such luck")

    with pytest.raises(InputError, match="test/images_005 could not be done on the cluster: .*no such luck; run the"):
        share(cluster, FolderMirror(shards), tmp_path, fail)
    assert (tmp_path / "log").read_text().split().count("images_005") == 1 + tasks.RETRIES
    assert (tmp_path / "images_000.txt").exists() and not (tmp_path / "images_005.txt").exists()


def test_wrong_input_is_told_at_once_with_the_paths_of_this_machine(cluster, shards, tmp_path):
    def refuse(name):
        raise InputError("the photo is wrong")

    with pytest.raises(InputError, match="^the photo is wrong$"):
        share(cluster, FolderMirror(shards), tmp_path, refuse)


def test_a_stop_ends_the_tasks(cluster, shards, tmp_path):
    def wait(name):
        (tmp_path / "began").touch()
        time.sleep(600)

    def stop():
        while not (tmp_path / "began").exists():
            time.sleep(0.1)
        command.stop_event.set()

    threading.Thread(target=stop).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        share(cluster, FolderMirror(shards), tmp_path, wait)
    assert time.monotonic() - began < 300


def test_a_mirror_at_a_url_comes_to_the_nodes_and_no_disk_has_more_than_two_shards_a_device(
    cluster, shards, tmp_path, serve
):
    mirror = open_mirror(serve(shards).url, tmp_path / "mirror", settings=MirrorSettings(ahead=1))
    seen = tmp_path / "seen"

    def count(_):
        import tempfile

        there = list(Path(tempfile.gettempdir()).glob("landmarks-cluster-*/*/*/mirror/test/*.tar*"))
        with open(seen, "a") as file:
            file.write(f"{len(there)}\n")
        time.sleep(0.2)

    files, _ = share(cluster, mirror, tmp_path, count)
    require_whole(files, FolderMirror(shards))
    assert 2 <= max(map(int, seen.read_text().split())) <= 2 * 2  # on both nodes, which share this disk


def test_damage_is_judged_over_all_shards(cluster, shards, tmp_path):
    for path in shards.rglob("*"):
        if path.is_file():
            copy = tmp_path / "damaged" / path.relative_to(shards)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes()[: 6000 if path.name in ("images_002.tar", "images_006.tar") else None])
    mirror = FolderMirror(tmp_path / "damaged", MirrorSettings(max_damaged=0.05))
    with pytest.raises(InputError, match="2 of 8 test shards .* are damaged"):
        share(cluster, mirror, tmp_path)


def test_a_node_that_is_lost_leaves_its_shards_to_the_others(cluster, shards, tmp_path):
    mirror, lost = FolderMirror(shards), cluster.add_node(num_cpus=1)

    def wait(name):
        time.sleep(0.3)

    killer = threading.Thread(target=lambda: (_until(tmp_path / "log", 4), cluster.remove_node(lost, False)))
    killer.start()
    files, log = share(cluster, mirror, tmp_path, wait)
    killer.join()
    require_whole(files, mirror)
    assert len(log.read_text().split()) <= len(files) + 2


def _until(log: Path, count: int) -> None:
    while not log.exists() or len(log.read_text().split()) < count:
        time.sleep(0.05)


def test_a_shard_that_always_ends_its_process_ends_the_run(cluster, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "LOST", 5)  # on a busy machine a worker takes a second to come back

    def die(name):
        if name == "images_003":
            os._exit(1)

    with pytest.raises(InputError, match="test/images_003 could not be done on the cluster"):
        share(cluster, FolderMirror(shards), tmp_path, die)
