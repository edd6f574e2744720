"""Tars: names, links, devices, sparse and PAX members, sizes that lie."""

import io
import tarfile
from contextlib import closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from strangers import hostile, mutated

from landmarks.mirrors.shards import DamagedShard, TarShard, valid_id
from landmarks.running.skipped import record_skipped, skipped_photos

NAMES = [
    "a/b/c/abc1.jpg", "a/b/c/abc2.jpg", "A/B/C/ABC1.jpg", "a/b/c/abC1.jpg", "../../owned", "/tmp/owned",
    "a/b/c/../abc.jpg", "a/b/c/abc\0.jpg", "a/b/c/abc\u202egpj.jpg", "a/b/c/ab\u0661.jpg", "a", "", "\udcff\udcfe",
    "a/b/c/abc3.jpg/", "./a/b/c/abc1.jpg", "x" * 99, "a/b/c/abc\r\n.jpg", "CON", "a\\b\\c\\abc1.jpg",
]  # fmt: skip
KINDS = [bytes([kind]) for kind in b"0\x001234567xgLKSDVMNXZ"]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


@st.composite
def records(draw) -> bytes:
    """Of a PAX header: most have the length that they say."""
    data = b""
    keys = ["path", "size", "linkpath", "hdrcharset", "mtime", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.name",
            "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.realsize", "uid", "x"]  # fmt: skip
    values = [*NAMES, "0", "1", "-512", "99999999999999999999", "1e999", "0,5,-1,7", "BINARY", "1" * 5000]
    for key, value in draw(st.lists(st.tuples(st.sampled_from(keys), st.sampled_from(values)), max_size=4)):
        record = f" {key}={value}\n".encode(errors="surrogateescape")
        length = next(n for n in range(len(record), 10**5) if len(str(n)) + len(record) == n)
        data += str(draw(st.sampled_from([length] * 9 + [0, 10**9]))).encode() + record
    return data


@st.composite
def tars(draw) -> bytes:
    data = b""
    for _ in range(draw(st.integers(0, 6))):
        member = tarfile.TarInfo(draw(st.sampled_from(NAMES)))
        member.type = draw(st.sampled_from(KINDS[:1] * 9 + KINDS))
        member.linkname = draw(st.sampled_from(["", "../../owned", "/etc/passwd", "a/b/c/abc1.jpg"]))
        body = draw(records() if member.type in b"xgX" else st.sampled_from([b"", b"photo", bytes(600), b"../../x\0"]))
        member.size = draw(st.sampled_from([len(body)] * 9 + [0, 511, 2**30, 2**62, -512, 64 * 2**20 + 1]))
        member.mtime = draw(st.sampled_from([0, 2**40, -1]))
        data += member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + padded(body)
    return data + draw(st.sampled_from([bytes(1024)] * 4 + [b"", bytes(512), data]))


WHOLE_TAR = io.BytesIO()
with tarfile.open(fileobj=WHOLE_TAR, mode="w", format=tarfile.PAX_FORMAT) as archive:
    for number, comment in enumerate(("", "ä")):
        info = tarfile.TarInfo(f"a/b/c/abc{number}.jpg")
        info.size, info.pax_headers = 5, {"comment": comment} if comment else {}
        archive.addfile(info, io.BytesIO(b"photo"))


def read_shard(path: Path, salvage: bool) -> None:
    with closing(TarShard(path, salvage)) as shard:
        assert all(map(valid_id, shard.ids)) and len(set(shard.ids)) == len(shard.ids)
        for identity in shard.ids:
            assert len(shard.read(identity)) <= shard.size(identity) <= 64 * 2**20
        record_skipped(path.parent, "train", shard.name, shard.refused)
        skipped_photos(path.parent, "train", shard.name)


@hostile
@given(tars() | mutated([WHOLE_TAR.getvalue()]), st.booleans())
def test_tars(read_within_bounds, data, salvage):
    read_within_bounds(
        lambda path: read_shard(path, salvage), data, "images_000.tar", *([] if salvage else [DamagedShard])
    )


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def test_a_header_of_digits_costs_no_time(read_within_bounds):
    data = header("x", 2**16, b"x") + b"1" * 2**16 + header("a/b/c/abc1.jpg", 0) + bytes(1024)
    read_within_bounds(lambda path: read_shard(path, False), data, "images_000.tar", DamagedShard)


def test_records_for_all_members_take_no_memory_with_each(read_within_bounds):
    some = b"".join(b"10 %04d=x\n" % number for number in range(6000))
    data = header("x", len(some), b"g") + padded(some)
    data += b"".join(header(f"a/b/c/abc{number}.jpg", 0) for number in range(2000)) + bytes(1024)
    read_within_bounds(lambda path: read_shard(path, False), data, "images_000.tar", DamagedShard)


def test_a_long_name_that_is_passed_over_can_be_read_back(read_within_bounds):
    data = header("x", 60_000, b"L") + padded(b"\xff" * 60_000) + header("x", 0) + bytes(1024)
    read_within_bounds(lambda path: read_shard(path, False), data, "images_000.tar")
