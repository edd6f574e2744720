import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import jpeg, make_mirror

from landmarks.local_features import kept as kept_files
from landmarks.local_features.kept import KeptFeatures, keep_features
from landmarks.local_features.points import LocalFeatures, decode
from landmarks.mirrors import added
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.shards import FolderShard
from landmarks.running import command
from landmarks.running.command import InputError
from landmarks.running.features_file import Features, save_features
from landmarks.sample.photos import landmark_view

SMALL = (0, 3, 0)  # seed, landmark and view of a photo of the sample


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(landmark_view(*SMALL)[0])


class Counting:
    """An extractor that finds a point for each of three rows of a photo, and counts its photos."""

    def __init__(self):
        self.photos = self.opened = 0

    def open(self):
        self.opened += 1
        return self

    def __call__(self, photos: Sequence[np.ndarray]) -> list[LocalFeatures]:
        return [self.of(photo) for photo in photos]

    def of(self, photo: np.ndarray) -> LocalFeatures:
        self.photos += 1
        descriptors = photo[:3, :8, 0].astype(np.float32)
        points = np.array([[0.25, 7], [511.5, 3.125], [1e-3, 0]], np.float32)
        return LocalFeatures(points, descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True))


@pytest.fixture
def shard(tmp_path, monkeypatch):
    """A mirror, the features file of its first test shard, and the ids there; photos of 32 x 24 px are large enough."""
    monkeypatch.setattr(kept_files, "SMALLEST_SIDE", 24)
    mirror = open_mirror(str(make_mirror(tmp_path / "mirror", test=4)))
    ids = [identity for first in mirror.stream("test", ["images_000"]) for identity in first.ids]
    save_features(tmp_path / "features/images_000.npz", Features(np.array(ids), np.ones((len(ids), 2), "float16")))
    return mirror, [tmp_path / "features/images_000.npz"], ids


def kept(shard, counting: Counting, wanted: list[str], tmp_path: Path, most: int | None = None) -> KeptFeatures:
    mirror, embedded, _ = shard
    return keep_features(
        counting.open, mirror, "test", embedded, wanted, tmp_path / "local", size=512, work=tmp_path / "work", most=most
    )


def test_features_are_kept_and_made_once(shard, tmp_path):
    ids = shard[2]
    (tmp_path / "work").mkdir()
    counting = Counting()
    first = kept(shard, counting, ids[:4], tmp_path)
    assert sorted(first) == sorted(ids[:4]) and counting.photos == 4
    assert first.shard_of(ids[0]) == "images_000"
    again = kept(shard, counting, ids[1:3], tmp_path)
    assert counting.photos == 4 and counting.opened == 1 and len(again) == 4
    more = kept(shard, counting, ids[3:6], tmp_path)
    assert counting.photos == 6 and sorted(more) == sorted(ids[:6])  # the first four are not made again


def test_features_come_back_nearly_as_they_were(shard, tmp_path):
    mirror, _, ids = shard
    (tmp_path / "work").mkdir()
    found = kept(shard, Counting(), ids, tmp_path)
    for opened_shard in mirror.stream("test", ["images_000"]):
        for identity in ids:
            expected = Counting().of(decode(opened_shard.read(identity), 512))
            np.testing.assert_array_equal(found[identity].points, expected.points)
            np.testing.assert_allclose(np.linalg.norm(found[identity].descriptors, axis=1), 1, atol=1e-6)
            cosines = (found[identity].descriptors * expected.descriptors).sum(axis=1)
            assert (cosines > 0.9999).all()


def test_damage_is_noticed_and_made_again(shard, tmp_path):
    ids = shard[2]
    (tmp_path / "work").mkdir()
    before = {identity: features for identity, features in kept(shard, Counting(), ids, tmp_path).items()}
    path = tmp_path / "local/test/images_000.npz"
    whole = path.read_bytes()
    point = whole.index(np.float32(511.5).tobytes())
    damages = [b"", whole[: len(whole) // 2], whole[:-1], whole[:point] + b"\x01" + whole[point + 1 :]]
    for damaged in damages:
        path.write_bytes(damaged)
        counting = Counting()
        after = kept(shard, counting, ids, tmp_path)
        assert counting.photos == len(ids)
        for identity in ids:
            np.testing.assert_array_equal(after[identity].points, before[identity].points)
            np.testing.assert_array_equal(after[identity].descriptors, before[identity].descriptors)
    late = KeptFeatures([path])
    path.write_bytes(damages[-1])
    with pytest.raises(InputError, match="images_000.npz is damaged .*run the same command again"):
        list(late.values())


def test_a_damaged_file_of_which_nothing_is_wanted_is_passed_over(shard, tmp_path):
    (tmp_path / "work").mkdir()
    kept(shard, Counting(), shard[2], tmp_path)
    (tmp_path / "local/test/images_000.npz").write_bytes(b"no zip")
    counting = Counting()
    assert not kept(shard, counting, [], tmp_path)
    assert not counting.photos


def test_damage_that_changes_neither_size_nor_time_is_noticed_when_it_is_read(shard, tmp_path):
    ids = shard[2]
    (tmp_path / "work").mkdir()
    kept(shard, Counting(), ids, tmp_path)
    kept(shard, Counting(), ids, tmp_path)
    path = tmp_path / "local/test/images_000.npz"
    data, times = bytearray(path.read_bytes()), path.stat()
    data[data.index(np.float32(511.5).tobytes())] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(InputError, match="images_000.npz is damaged .*run the same command again"):
        list(kept(shard, Counting(), ids, tmp_path).values())
    counting = Counting()
    assert [features.points[1, 0] for features in kept(shard, counting, ids, tmp_path).values()] == [511.5] * len(ids)
    assert counting.photos == len(ids)


def test_a_file_is_read_through_once(shard, tmp_path, monkeypatch):
    ids, read = shard[2], []
    (tmp_path / "work").mkdir()
    kept(shard, Counting(), ids, tmp_path)
    original = kept_files._read
    monkeypatch.setattr(kept_files, "_read", lambda *place: read.append(place) or original(*place))
    kept(shard, Counting(), ids, tmp_path)
    assert len(read) == len(ids)
    kept(shard, Counting(), ids, tmp_path)
    assert len(read) == len(ids)
    path = tmp_path / "local/test/images_000.npz"
    os.utime(path, ns=(1, 1))  # as a copy has it
    kept(shard, Counting(), ids, tmp_path)
    assert len(read) == 2 * len(ids)


def test_no_file_stays_open(tmp_path):
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():  # on macOS; Linux, as in CI, always has it
        pytest.skip("no /proc here to count open files in")
    paths = [tmp_path / f"images_{number:03d}.npz" for number in range(50)]
    for path in paths:
        np.savez(path, **{path.stem: np.zeros((2, 12), np.uint8)})
    before = len(list(descriptors.iterdir()))
    found = KeptFeatures(paths)
    assert len(found) == 50 and all(len(features.points) == 2 for features in found.values())
    assert len(list(descriptors.iterdir())) <= before


def test_no_more_than_so_many_are_kept_and_what_is_least_needed_goes_first(shard, tmp_path):
    ids = shard[2]
    (tmp_path / "work").mkdir()
    counting = Counting()
    assert set(kept(shard, counting, ids[2:5][::-1], tmp_path, most=2)) == set(ids[3:5])  # the first two wanted
    assert counting.photos == 2
    assert set(kept(shard, counting, [ids[0], ids[3]], tmp_path, most=3)) == {ids[0], ids[3], ids[4]}
    assert counting.photos == 3
    assert set(kept(shard, counting, [ids[0], ids[1]], tmp_path, most=2)) == {ids[0], ids[1]}  # neither 3 nor 4
    assert set(kept(shard, counting, [ids[1], ids[0]], tmp_path, most=1)) == {ids[1]}
    assert counting.photos == 4 and counting.opened == 3  # removing needs no extractor
    assert set(kept(shard, counting, [], tmp_path, most=0)) == set()


@pytest.mark.parametrize("array", [np.zeros((2, 3)), np.zeros(9, np.uint8), np.array([{}], dtype=object)])
def test_other_arrays_are_made_again_and_nothing_is_unpickled(shard, tmp_path, array):
    ids = shard[2]
    (tmp_path / "work").mkdir()
    path = tmp_path / "local/test/images_000.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **dict.fromkeys(ids, array))
    counting = Counting()
    assert all(len(features.points) == 3 for features in kept(shard, counting, ids, tmp_path).values())
    assert counting.photos == len(ids)


def test_an_array_that_says_it_is_larger_than_its_file_is_made_again(shard, tmp_path):
    ids = shard[2]
    (tmp_path / "work").mkdir()
    path = tmp_path / "local/test/images_000.npz"
    path.parent.mkdir(parents=True)
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (10**14, 72)}
    np.lib.format.write_array_header_1_0(header, fields)
    with zipfile.ZipFile(path, "w") as file:
        for identity in ids:
            file.writestr(f"{identity}.npy", header.getvalue())
    counting = Counting()
    assert len(kept(shard, counting, ids, tmp_path)) == counting.photos == len(ids)


def test_a_photo_that_cannot_be_read_has_no_points_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_files, "SMALLEST_SIDE", 24)
    for identity, data in (("abcd", jpeg(1)), ("abce", b"no photo"), ("abcf", jpeg(2, (40, 10)))):
        path = tmp_path / "test/a/b/c" / f"{identity}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    ids = ["abcd", "abce", "abcf", "gone"]

    class Mirror:
        def stream(self, split, names):
            yield FolderShard(tmp_path / split, names[0], ids)

    save_features(tmp_path / "features/images_000.npz", Features(np.array(ids), np.ones((4, 2), "float16")))
    (tmp_path / "work").mkdir()
    found = kept((Mirror(), [tmp_path / "features/images_000.npz"], ids), Counting(), ids, tmp_path)
    assert {identity: len(features.points) for identity, features in found.items()} == {
        "abcd": 3, "abce": 0, "abcf": 0, "gone": 0,
    }  # fmt: skip
    skipped = (tmp_path / "work/skipped.csv").read_text()
    assert "abce" in skipped and "gone" in skipped and "abcd" not in skipped and "abcf" not in skipped


def test_photos_that_were_added_to_this_work_folder_are_not_looked_for_on_a_cluster(shard, tmp_path):
    mirror, embedded, ids = shard
    (tmp_path / "one.jpg").write_bytes(jpeg(90))
    (identity,) = added.take_in(tmp_path, [str(tmp_path / "one.jpg")])[0].values()
    table = pd.DataFrame({"id": [identity], "landmark_id": [7], "category": ["x"], "hash": [0], "url": ["one.jpg"]})
    added.write(tmp_path, table.astype({"hash": "uint64"}))
    path = tmp_path / "added/added.npz"
    save_features(path, Features(np.array([identity]), np.ones((1, 2), "float16")))
    counting, asked = Counting(), []
    found = keep_features(
        counting.open, added.WithAdded(mirror, tmp_path), "test", [*embedded, path], [ids[0], identity],
        tmp_path / "local", size=512, work=tmp_path, elsewhere=lambda todo, files, add: asked.append((todo, files)),
    )  # fmt: skip
    assert asked == [({"images_000": [ids[0]]}, {"images_000": tmp_path / "local/test/images_000.npz"})]
    assert set(found) == {identity} and counting.photos == 1


def test_a_stop_leaves_no_half_file(shard, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(kept_files, "TOGETHER", 1)

    class Stopping(Counting):
        def of(self, photo):
            if self.photos == 1:
                command.stop_event.set()
            return super().of(photo)

    with pytest.raises(command.Stopped):
        kept(shard, Stopping(), shard[2], tmp_path)
    assert not [path for path in (tmp_path / "local").rglob("*") if path.is_file()]
    command.stop_event.clear()
    counting = Counting()
    kept(shard, counting, shard[2], tmp_path)
    assert counting.photos == len(shard[2])
    assert zipfile.ZipFile(tmp_path / "local/test/images_000.npz").testzip() is None


@pytest.mark.parametrize("note", ["[]", "null", "{", "\0"])
def test_a_damaged_note_of_what_was_checked_is_no_more_than_lost(shard, tmp_path, note):
    counting, ids = Counting(), shard[2]
    kept(shard, counting, ids, tmp_path)
    (tmp_path / "local/test" / kept_files.NOTE).write_text(note)
    kept(shard, counting, ids, tmp_path)
    assert counting.photos == len(ids)
