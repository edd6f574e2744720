"""A run with a cache ends as one without, and downloads and decodes each shard once."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny  # noqa: F401  the backbone
from conftest import recipe_with

from generators import Batches
from landmarks.mirrors import images
from landmarks.mirrors.open import open_mirror
from landmarks.running import command
from landmarks.running.command import Stopped
from landmarks.training import run as training
from landmarks.training.cache import Cache, CachedShard
from landmarks.training.step import Steps


def counted(patch):
    """A list of as many elements as photos have been decoded from now on."""
    import generators

    count = []
    patch.setattr(generators, "decode_at", lambda *given: count.append(None) or images.decode_at(*given))
    return count


@pytest.fixture
def decoded(monkeypatch):
    return counted(monkeypatch)


def train(mirror, work, epochs=3, **settings):
    recipe = recipe_with(
        mirror=str(mirror), work=work, backbone="Tiny", weights="none", image_size=32, crop=1, batch_size=3,
        epochs=epochs, validation_shards=1, **settings,
    )  # fmt: skip
    opened = open_mirror(recipe.source.mirror, settings=recipe.source)
    classes = np.array([10, 20, 30])
    return training.train(recipe.run, recipe.model, recipe.training, opened, opened.train(), classes).get_weights()


@pytest.fixture(scope="module")
def without(tiny_mirror, tmp_path_factory):
    """The weights of a run without a cache, and how many photos it decoded."""
    with pytest.MonkeyPatch.context() as patch:
        decoded = counted(patch)
        return train(tiny_mirror, tmp_path_factory.mktemp("plain")), len(decoded)


@pytest.fixture
def plain(without):
    return without[0]


def require_the_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_later_epochs_decode_nothing_and_end_the_same(tiny_mirror, tmp_path, decoded, without):
    plain, without = without
    cached = train(tiny_mirror, tmp_path / "cached", cache=str(tmp_path / "cache"))
    require_the_same(cached, plain)
    shards = len(list((tmp_path / "cache").glob("*-32.npy")))
    assert shards == 5  # of six, one is held out
    assert len(decoded) < without / 2
    decoded.clear()
    again = train(tiny_mirror, tmp_path / "again", cache=str(tmp_path / "cache"))
    require_the_same(again, plain)
    assert len(decoded) <= without - 3 * len(pd.read_csv(tiny_mirror / "metadata/train.csv")) * 5 / 6 + 9  # held out


def test_a_stopped_epoch_goes_on_and_a_cut_file_is_made_anew(tiny_mirror, tmp_path, monkeypatch, plain):
    settings = {"cache": str(tmp_path / "cache")}
    step, taken = Steps.__call__, []

    def stop_at_the_fourth(*given):
        taken.append(None)
        if len(taken) == 4:
            command.stop_event.set()
        return step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "__call__", stop_at_the_fourth)
        with pytest.raises(Stopped):
            train(tiny_mirror, tmp_path / "stopped", **settings)
    command.stop_event.clear()
    assert not list((tmp_path / "cache").glob("part-*"))
    require_the_same(train(tiny_mirror, tmp_path / "stopped", **settings), plain)
    for path in (tmp_path / "cache").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:200])
    require_the_same(train(tiny_mirror, tmp_path / "spoilt", **settings), plain)


def test_what_finds_no_room_is_read_anew(tiny_mirror, tmp_path, plain):
    limit = 2.5 * 4 * 32 * 32 * 3 / 1e9  # two shards of some four photos
    require_the_same(train(tiny_mirror, tmp_path / "w", cache=str(tmp_path / "cache"), cache_size=limit), plain)
    kept = [path.stat().st_size for path in (tmp_path / "cache").glob("*.npy")]
    assert 0 < len(kept) < 5 and sum(kept) <= limit * 1e9


def test_unreadable_photos_stay_named_and_other_photos_are_not_taken(tiny_mirror, tmp_path):
    mirror = open_mirror(str(tiny_mirror))
    classes = mirror.train().set_index("id")["landmark_id"]
    cache = Cache(mirror, tmp_path, classes, 32, 1e9)
    name = mirror.shard_names("train")[0]
    streamed = cache.stream("train", [name])
    shard = next(streamed)
    broken, read = shard.ids[0], shard.read
    shard.read = lambda one: b"no photo" if one == broken else read(one)
    first = cache.batches(shard, shard.ids, 32, 2)
    seen = list(first)
    (kept,) = cache.stream("train", [name])
    again = cache.batches(kept, kept.ids, 32, 2)
    for (ids, photos), (others, same) in zip(seen, again, strict=True):
        assert ids == others
        np.testing.assert_array_equal(photos, same)
    assert again.unreadable == first.unreadable and again.unreadable[0][0] == broken
    assert json.loads((tmp_path / f"{name}-32.json").read_text())["ids"] == shard.ids
    fewer = Cache(mirror, tmp_path, classes[1:], 32, 1e9)
    (other,) = fewer.stream("train", [name])
    assert not isinstance(other, type(kept))


def test_two_runs_that_fill_one_cache_at_a_time_leave_whole_photos(tiny_mirror, tmp_path):
    mirror = open_mirror(str(tiny_mirror))
    classes = mirror.train().set_index("id")["landmark_id"]
    name = mirror.shard_names("train")[0]
    caches = [Cache(mirror, tmp_path, classes, 32, 1e9) for _ in range(2)]
    streams = [cache.stream("train", [name]) for cache in caches]
    shards = [next(stream) for stream in streams]
    expected = [photos for _, photos in Batches(shards[0], shards[0].ids, 32, 1)]
    one, other = (iter(cache.batches(shard, shard.ids, 32, 1)) for cache, shard in zip(caches, shards, strict=True))
    seen = [next(one), next(one), next(other)]  # the second run begins when the first one is ahead
    np.testing.assert_array_equal([photos for _, photos in [*seen[:2], *one]], expected)
    np.testing.assert_array_equal([photos for _, photos in [seen[2], *other]], expected)
    kept = caches[0].opened(name)
    np.testing.assert_array_equal(kept.photos, np.concatenate(expected))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells which files are open")
def test_a_cache_of_more_shards_than_files_may_be_open_is_read(tiny_mirror, tmp_path):
    mirror = open_mirror(str(tiny_mirror))
    classes = mirror.train().set_index("id")["landmark_id"]
    names, cache = mirror.shard_names("train"), Cache(mirror, tmp_path, classes, 32, 1e9)
    for shard in cache.stream("train", names):
        list(cache.batches(shard, shard.ids, 32, 2))
    open_files = Path("/proc/self/fd")
    before, most = len(list(open_files.iterdir())), 0
    for shard in cache.stream("train", names):
        assert isinstance(shard, CachedShard)
        most = max(most, len(list(open_files.iterdir())) - before)
    assert most <= 2 < len(names)
