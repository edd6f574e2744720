import os
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import identity, jpeg

from generators import Batches
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.images import decode
from landmarks.mirrors.random_access import RandomAccess
from landmarks.mirrors.shards import write_tar
from landmarks.mirrors.web import WebMirror
from landmarks.running import command
from landmarks.running.command import InputError, Stopped
from landmarks.running.settings import MirrorSettings
from landmarks.running.skipped import record_skipped

NAMES = ["images_000", "images_001", "images_002"]


@pytest.fixture
def photos() -> dict[str, bytes]:
    return {identity(number): jpeg(number, size=(20 + number, 30)) for number in range(12)}


@pytest.fixture
def mirror(tmp_path, photos) -> FolderMirror:
    """Four photos in each of three shards."""
    items = list(photos.items())
    for number, name in enumerate(NAMES):
        write_tar(tmp_path / f"train/{name}.tar", items[4 * number : 4 * number + 4])
    return FolderMirror(tmp_path)


def test_any_wanted_photo_of_the_shards_named_and_no_other(mirror, photos):
    wanted = [*list(photos)[1:10], identity(99)]  # the last is nowhere, the last but one in a shard that is not named
    photo = RandomAccess(mirror, "train", NAMES[:2], wanted, 256)
    assert photo.ids == sorted(list(photos)[1:8])
    for name in reversed(photo.ids):
        assert photo.read(name) == photos[name]
    for name in (list(photos)[0], list(photos)[9], identity(99), "", "~"):
        with pytest.raises(KeyError):
            photo.read(name)


def test_batches_come_in_any_order_and_with_repeats(mirror, photos, tmp_path):
    wanted = list(photos)
    order = [wanted[number] for number in (11, 0, 5, 5, 11, 2)]
    photo = RandomAccess(mirror, "train", NAMES, wanted, 16)
    batches = list(Batches(photo, order, 16, batch_size=3))
    assert [ids for ids, _ in batches] == [order[:3], order[3:]]
    for ids, images in batches:
        for name, image in zip(ids, images, strict=True):
            np.testing.assert_array_equal(image, decode(photos[name], 16))
    record_skipped(tmp_path, "train", photo.name, [*photo.refused, (order[0], "broken")])
    assert (tmp_path / "skipped.csv").read_text().splitlines()[1] == f"train,images_000..images_002,{order[0]},broken"
    photo.close()


def test_an_extracted_tree_is_read_too(tmp_path, photos):
    for name, data in photos.items():
        path = tmp_path / "train" / name[0] / name[1] / name[2] / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    mirror = FolderMirror(tmp_path)
    photo = RandomAccess(mirror, "train", mirror.shard_names("train"), [*list(photos)[:5], identity(99)], 256)
    assert photo.name == "images_000"
    assert photo.ids == sorted(list(photos)[:5])
    assert all(photo.read(name) == photos[name] for name in photo.ids)
    path.unlink()
    with pytest.raises(OSError):
        RandomAccess(mirror, "train", mirror.shard_names("train"), photos, 256).read(name)


def test_a_mirror_at_a_url_is_refused_with_the_command_to_type(tmp_path):
    with pytest.raises(InputError, match="triplets need random access") as refusal:
        RandomAccess(WebMirror("https://example.org/gld/", tmp_path), "train", NAMES, [], 256)
    assert "`python mirror.py shrink https://example.org/gld OUT --size 256`" in str(refusal.value)


def test_members_that_do_not_count_are_named_with_their_shard(mirror, photos, tmp_path):
    first = next(iter(photos))
    write_tar(tmp_path / "train/images_001.tar", [(first, b"another"), ("abc0", b"unwanted"), ("abc1", b"x")])
    with tarfile.open(tmp_path / "train/images_001.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("../evil.jpg"))
    photo = RandomAccess(mirror, "train", NAMES[:2], [*photos, "abc1"], 256)
    assert photo.refused == [
        ("images_001/../evil.jpg", "not named a/b/c/ID.jpg"),
        (f"images_001/{first}", "id seen before"),
    ]
    assert photo.read(first) == photos[first]
    assert photo.read("abc1") == b"x"


def test_of_a_damaged_shard_the_photos_before_the_fault_are_there(mirror, photos, tmp_path):
    path = tmp_path / "train/images_001.tar"
    path.write_bytes(path.read_bytes()[:1500])
    found = RandomAccess(mirror, "train", NAMES, list(photos), 256)
    assert 0 < len(found.ids) < len(photos)
    assert any(name.endswith("images_001.tar") and "damaged" in reason for name, reason in found.refused)
    with pytest.raises(InputError, match=r"images_001\.tar"):
        RandomAccess(FolderMirror(tmp_path, MirrorSettings(strict=True)), "train", NAMES, [], 256)


def test_indexing_ends_when_it_is_asked_to(mirror):
    command.stop_event.set()
    with pytest.raises(Stopped):
        RandomAccess(mirror, "train", NAMES, [], 256)


def test_threads_do_not_disturb_each_other(mirror, photos):
    photo = RandomAccess(mirror, "train", NAMES, photos, 256)
    order = [list(photos)[i] for i in np.random.default_rng(0).integers(0, len(photos), 4000)]
    with ThreadPoolExecutor(8) as pool:
        for name, data in zip(order, pool.map(photo.read, order), strict=True):
            assert data == photos[name]


# Not on Windows; Linux, as in CI, always has it.
@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="nothing lists the open files here")
def test_no_file_stays_open(mirror, photos):
    before = len(os.listdir("/dev/fd"))
    photo = RandomAccess(mirror, "train", NAMES, photos, 256)
    photo.read(next(iter(photos)))
    assert len(os.listdir("/dev/fd")) == before


def test_memory_is_less_than_32_bytes_a_photo(tmp_path):
    wanted = [identity(number) for number in range(4000)]
    for number, name in enumerate(NAMES[:2]):
        write_tar(tmp_path / f"train/{name}.tar", ((photo, b"") for photo in wanted[2000 * number :][:2000]))
    mirror = FolderMirror(tmp_path)
    tracemalloc.start()
    try:
        few = RandomAccess(mirror, "train", NAMES[:2], wanted[:1], 256)
        base = tracemalloc.get_traced_memory()[0]
        photo = RandomAccess(mirror, "train", NAMES[:2], wanted, 256)
        taken = tracemalloc.get_traced_memory()[0] - base
    finally:
        tracemalloc.stop()
    assert (len(few.ids), len(photo.ids)) == (1, 4000)
    assert taken < 32 * 4000
