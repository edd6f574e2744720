import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, identity, jpeg

from generators import Batches, shuffled
from landmarks.mirrors.images import decode
from landmarks.mirrors.shards import FolderShard, TarShard, member_name, write_tar
from landmarks.running import processes


@pytest.fixture
def shard(tmp_path):
    photos = [(identity(number), jpeg(number)) for number in range(10)]
    photos[3] = (photos[3][0], b"no photo")
    write_tar(tmp_path / "images_000.tar", photos)
    with closing(TarShard(tmp_path / "images_000.tar")) as shard:
        yield shard


def test_every_photo_comes_once_in_order_and_the_broken_one_is_named(shard):
    batches = Batches(shard, shard.ids, 16, batch_size=4)
    assert len(batches) == 3
    seen = list(batches)
    good = [photo for number, photo in enumerate(shard.ids) if number != 3]
    assert [photo for ids, _ in seen for photo in ids] == good
    assert [images.shape for _, images in seen] == [(3, 16, 16, 3), (4, 16, 16, 3), (2, 16, 16, 3)]
    for ids, images in seen:
        assert images.dtype == np.uint8
        for photo, image in zip(ids, images, strict=True):
            np.testing.assert_array_equal(image, decode(shard.read(photo), 16))
    ((name, reason),) = batches.unreadable
    assert name == shard.ids[3]
    assert "not a photo" in reason


def test_skipped_batches_are_not_decoded_and_the_rest_is_the_same(shard, monkeypatch):
    rest = [ids for ids, _ in Batches(shard, shard.ids, 16, batch_size=4)][1:]
    read = []
    original = shard.read
    monkeypatch.setattr(shard, "read", lambda photo: read.append(photo) or original(photo))
    assert [ids for ids, _ in Batches(shard, shard.ids, 16, batch_size=4, first=1)] == rest
    assert sorted(read) == sorted(shard.ids[4:])


def test_a_batch_of_broken_photos_is_left_out(shard):
    assert [ids for ids, _ in Batches(shard, [shard.ids[3], shard.ids[0]], 16, batch_size=1)] == [[shard.ids[0]]]


def test_no_photos_no_batches(shard):
    assert list(Batches(shard, [], 16, 4)) == []


def test_the_order_follows_from_seed_and_mini_epoch_alone():
    orders = {(seed, number): shuffled(50, seed, number).tolist() for seed in range(3) for number in range(3)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 9
    np.random.seed(1)
    assert shuffled(50, 2, 1).tolist() == orders[2, 1]


@pytest.mark.parametrize("tree", [False, True])
def test_processes_decode_what_threads_decode(shard, tmp_path, monkeypatch, tree):
    if tree:
        for photo in shard.ids[:5]:
            path = tmp_path / member_name(photo)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(shard.read(photo))
        shard = FolderShard(tmp_path, shard.name, shard.ids)  # of which half are missing
    by_threads = Batches(shard, shard.ids, 16, batch_size=9)
    expected = list(by_threads)
    monkeypatch.setattr(processes, "worth_it", lambda: True)
    by_processes = Batches(shard, shard.ids, 16, batch_size=9)
    for (ids, images), (others, same) in zip(by_processes, expected, strict=True):
        assert ids == others
        np.testing.assert_array_equal(images, same)
    assert by_processes.unreadable == by_threads.unreadable and by_threads.unreadable


def test_processes_end_with_their_parent(tmp_path):
    program = (
        "from landmarks.running import processes; import os, signal, time\n"
        "if __name__ == '__main__':\n"
        "    print(processes.pool().submit(abs, -1).result(), flush=True)\n"
        "    print(*processes.pool()._processes, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "parent.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, path], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    workers = [int(one) for one in done.stdout.splitlines()[1].split()]
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.1)
