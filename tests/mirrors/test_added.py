import numpy as np
import pandas as pd
import pytest
from conftest import jpeg
from PIL import Image

from landmarks.mirrors import added
from landmarks.mirrors.folder import FolderMirror
from landmarks.running.command import InputError


def table_of(*rows) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["id", "landmark_id", "category", "hash", "url"])
    return table.astype({"landmark_id": "Int64", "hash": "uint64"})


def test_the_table_is_read_as_it_was_written(tmp_path):
    assert added.read(tmp_path).empty
    table = table_of(("abc0", 7, "Tower, old", 2**64 - 1, "a.jpg"), ("abc1", pd.NA, "", 0, "b\n\x1b.jpg"))
    added.write(tmp_path, table)
    found = added.read(tmp_path)
    expected = table.assign(url=["a.jpg", "b\\n\\x1b.jpg"])
    pd.testing.assert_frame_equal(found[table.columns], expected, check_dtype=False)  # of text, as pandas may have it
    added.write(tmp_path, table[:0])
    assert added.read(tmp_path).empty


@pytest.mark.parametrize(
    "text",
    [
        "id,landmark,category,hash,url\nabc0,x,,0,\n",
        "id,landmark,category,hash,url\nabc0,1,,g,\n",
        f"id,landmark,category,hash,url\nabc0,1,,{'f' * 17},\n",
        f"id,landmark,category,hash,url\nabc0,{10**30},,0,\n",
        "id,landmark,category,hash,url\n../x,1,,0,\n",
        "id,landmark,category,hash,url\nabc0,1,,0,\nabc0,1,,0,\n",
        "id,url\nabc0,\n",
    ],
)
def test_a_malformed_table_is_one_clear_line(tmp_path, text):
    (tmp_path / "added").mkdir()
    (tmp_path / "added/photos.csv").write_text(text)
    with pytest.raises(InputError, match=rf"photos.csv.*retrieval.py remove {tmp_path} --all"):
        added.read(tmp_path)


def test_photos_are_taken_in_as_jpegs_and_cleared_away(tmp_path):
    one, other, bad = (tmp_path / name for name in ("one.jpg", "other.png", "bad.png"))
    one.write_bytes(jpeg(1))
    Image.new("RGB", (20, 10), "red").save(other)
    bad.write_bytes(b"no photo")
    ids, failures = added.take_in(tmp_path, map(str, (one, other, bad, tmp_path / "gone.jpg")))
    assert list(ids) == [str(one), str(other)]
    assert [(path, reason[:11]) for _, path, reason in failures] == [
        (str(bad), "not a photo"), (str(tmp_path / "gone.jpg"), "No such fil"),
    ]  # fmt: skip
    photos = added.photos_of(tmp_path, [*ids.values(), "abc0"])
    assert photos[ids[str(one)]] == jpeg(1) and photos[ids[str(other)]].startswith(b"\xff\xd8")
    assert added.take_in(tmp_path, [str(one)])[0] == {str(one): ids[str(one)]}  # the same photo has the same id
    (tmp_path / "added/part-photos.csv").write_text("half")
    (tmp_path / "added/photos.csv").write_text("whole")
    added.clear(tmp_path, [ids[str(other)]])
    assert list(added.photos_of(tmp_path, ids.values())) == [ids[str(other)]]
    assert sorted(path.name for path in (tmp_path / "added").glob("*.csv")) == ["photos.csv"]


def test_they_are_streamed_after_the_mirrors_own_shards(tmp_path, tiny_mirror):
    (tmp_path / "one.jpg").write_bytes(jpeg(1))
    ids, _ = added.take_in(tmp_path, [str(tmp_path / "one.jpg")])
    (identity,) = ids.values()
    added.write(tmp_path, table_of((identity, 7, "Tower", np.uint64(0), "one.jpg")))
    mirror = added.WithAdded(FolderMirror(tiny_mirror), tmp_path)
    names = [*mirror.shard_names("index"), added.ADDED]
    shards = {shard.name: (shard.ids, shard.read(shard.ids[0])) for shard in mirror.stream("index", names)}
    assert list(shards) == names and shards[added.ADDED] == ([identity], jpeg(1))
    assert [shard.name for shard in mirror.stream("index", names[:1])] == names[:1]
