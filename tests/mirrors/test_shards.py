import io
import os
import tarfile
from contextlib import closing, nullcontext

import pytest

from landmarks.mirrors.shards import DamagedShard, FolderShard, TarShard, valid_id, write_tar


def add(tar: tarfile.TarFile, name: str, data: bytes = b"photo", **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def test_photos_come_back_as_written(tmp_path):
    photos = {"0123456789abcdef": b"one", "fedcba9876543210": b"two" * 1000, "abc": b""}
    write_tar(tmp_path / "images_000.tar", photos.items())
    with closing(TarShard(tmp_path / "images_000.tar")) as shard:
        assert shard.name == "images_000"
        assert {identity: shard.read(identity) for identity in shard.ids} == photos
    with tarfile.open(tmp_path / "images_000.tar") as tar:
        assert tar.getnames() == ["0/1/2/0123456789abcdef.jpg", "f/e/d/fedcba9876543210.jpg", "a/b/c/abc.jpg"]


def test_only_plain_photos_count_and_the_rest_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("landmarks.mirrors.shards.MAX_PHOTO_BYTES", 100)
    refused = {
        "../../../etc/passwd": {},
        "/a/b/c/abc1.jpg": {},
        "a/b/c/../abc2.jpg": {},
        "a/b/c/xyz.jpg": {},  # the folders are not the id's first characters
        "a/b/c/abc.png": {},
        "a/b/c/abc3.jpg": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        "a/b/c/abc4.jpg": {"type": tarfile.LNKTYPE, "linkname": "a/b/c/abcd.jpg"},
        "a/b/c/abc5.jpg": {"type": tarfile.CHRTYPE},
        "a/b/c/abc6.jpg": {"data": bytes(101)},
    }
    with tarfile.open(tmp_path / "images_000.tar", "w") as tar:
        add(tar, "a", b"", type=tarfile.DIRTYPE)
        add(tar, "a/b/c/abcd.jpg", b"first")
        for name, fields in refused.items():
            data = fields.pop("data", b"" if "type" in fields else b"photo")
            add(tar, name, data, **fields)
        add(tar, "a/b/c/abcd.jpg", b"second")
        add(tar, "a/b/c/abce.jpg", b"last")
    with closing(TarShard(tmp_path / "images_000.tar")) as shard:
        assert shard.ids == ["abcd", "abce"]
        assert shard.read("abcd") == b"first"
        assert shard.read("abce") == b"last"
    assert {name for name, _ in shard.refused} == {*refused, "a/b/c/abcd.jpg"}
    assert list(tmp_path.iterdir()) == [tmp_path / "images_000.tar"]


def test_a_cut_tar_is_noticed_wherever_it_is_cut(tmp_path):
    path = tmp_path / "images_000.tar"
    write_tar(path, [("abc1", b"x" * 700), ("abc2", b"y" * 700)])
    whole = path.read_bytes()
    for length in (0, 100, 512, 600, 1536, 1600, 2048 + 100, 2 * 1536):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedShard):
            TarShard(path)
    path.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(DamagedShard):
        TarShard(path)


def test_of_a_cut_tar_the_photos_before_the_cut_are_salvaged(tmp_path):
    path = tmp_path / "images_000.tar"
    write_tar(path, [("abc1", b"x" * 700), ("abc2", b"y" * 700)])
    whole = path.read_bytes()
    for length, ids in (
        (0, []),
        (600, []),
        (1535, []),
        (1536, ["abc1"]),
        (2048 + 600, ["abc1"]),
        (3072, ["abc1", "abc2"]),
    ):
        path.write_bytes(whole[:length])
        with closing(TarShard(path, salvage=True)) as shard:
            assert shard.ids == ids
            assert all(shard.read(identity) in (b"x" * 700, b"y" * 700) for identity in ids)
            assert shard.refused == [("images_000.tar", shard.damage)]
            assert f"the {len(ids)} photos before that are used" in shard.damage
    path.write_bytes(whole)
    with closing(TarShard(path, salvage=True)) as shard:
        assert shard.damage == "" and shard.refused == []


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


FIRST = header("a/b/c/abc1.jpg", 5) + b"photo".ljust(512, b"\0")
LAST = header("a/b/c/abc2.jpg", 5) + b"photo".ljust(512, b"\0")
END = bytes(1024)


def sparse(real_size: bytes) -> bytes:
    """An old GNU sparse member (GNU tar manual, "Old GNU Format"): 512 bytes at 0, and a hole up to `real_size`."""
    block = bytearray(header("a/b/c/abc3.jpg", 512, tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"00000000000\0" + b"00000001000\0"
    block[483:495] = real_size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(512)


@pytest.mark.parametrize(
    "data",
    [
        FIRST + header("a/b/c/abc9.jpg", -512) + END,  # base-256 size; tarfile of Python 3.11.7 never ends
        FIRST + header("x", 14, b"x") + b"14 size=-2048\n".ljust(512, b"\0") + LAST + END,
        (header("x", 14, b"x") + b"14 mtime=00001\n".ljust(512, b"\0")) * 2000 + FIRST + END,
        (header("././@LongLink", 5, b"L") + b"a/b/c".ljust(512, b"\0")) * 2000 + FIRST + END,
        FIRST + header("x", 2**18, b"x") + bytes(2**18) + LAST + END,  # a header that would fill the memory
        FIRST + header("x", 2**18, b"L") + bytes(2**18) + LAST + END,
        FIRST + bytes(512) + LAST + END,  # the rest is not to be lost in silence
    ],
)
def test_a_hostile_tar_is_damaged(tmp_path, data):
    (tmp_path / "images_000.tar").write_bytes(data)
    with pytest.raises(DamagedShard):
        TarShard(tmp_path / "images_000.tar")


def test_a_tar_of_nothing_but_members_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("landmarks.mirrors.shards.MAX_MEMBERS", 3)
    path = tmp_path / "images_000.tar"
    for names, is_whole in ((("abc1", "abc2", "abc3"), True), (("abc1", "abc2", "abc3", "abc4"), False)):
        path.write_bytes(b"".join(header(f"a/b/c/{name}.jpg", 0) for name in names) + END)
        with nullcontext() if is_whole else pytest.raises(DamagedShard, match="more than 3 members"):
            TarShard(path).close()


@pytest.mark.parametrize("strange", [sparse(b"77777777777\0"), header("a/b/c/abc3.jpg", 600, b"Z") + bytes(1024)])
@pytest.mark.parametrize("rest", [LAST, b""])
def test_a_strange_member_costs_no_other_one(tmp_path, strange, rest):
    (tmp_path / "images_000.tar").write_bytes(FIRST + strange + rest + END)
    with closing(TarShard(tmp_path / "images_000.tar")) as shard:
        assert shard.ids == (["abc1", "abc2"] if rest else ["abc1"])
        assert shard.refused == [("a/b/c/abc3.jpg", "not a regular file")]


def test_the_same_photos_make_the_same_bytes(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, [("abc1", b"photo")])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def photos():
        yield "abc1", b"photo"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tar(tmp_path / "images_000.tar", photos())
    assert list(tmp_path.iterdir()) == []


def test_a_tree_is_read_by_id(tmp_path, monkeypatch):
    monkeypatch.setattr("landmarks.mirrors.shards.MAX_PHOTO_BYTES", 100)
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/abc1.jpg").write_bytes(b"photo")
    (tmp_path / "a/b/c/abc2.jpg").write_bytes(bytes(101))
    (tmp_path / "a/b/c/abc4.jpg").symlink_to("/dev/zero")  # which has no end
    os.mkfifo(tmp_path / "a/b/c/abc5.jpg")  # whose beginning nobody writes
    shard = FolderShard(tmp_path, "images_000", [f"abc{number}" for number in range(1, 6)])
    assert shard.read("abc1") == b"photo"
    for identity in shard.ids[1:]:
        with pytest.raises(OSError):
            shard.read(identity)


@pytest.mark.parametrize(
    ("identity", "valid"),
    [
        ("0123456789abcdef", True),
        ("a_b-c", True),
        ("abc", True),
        ("ab", False),
        ("", False),
        ("a/b", False),
        ("..a", False),
    ],
)
def test_valid_id(identity, valid):
    assert valid_id(identity) is valid


def test_no_id_leads_out_of_a_tree(tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "x.jpg").write_bytes(b"secret")
    bad = ["../x", f"{tmp_path}/x", "abc\x00", ""]
    shard = FolderShard(tmp_path / "a", "images_000", [*bad, "abc1"])
    assert shard.ids == ["abc1"]
    assert [identity for identity, _ in shard.refused] == bad
