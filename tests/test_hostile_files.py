"""Files and answers from strangers: each is read, or refused by the error that its reader documents, and soon.

`pytest -n0 tests/test_hostile_files.py --hypothesis-profile=long` tries 1,700 of every kind.
"""

import gc
import gzip
import io
import itertools
import json
import logging
import resource
import struct
import tarfile
import time
import zipfile
import zlib
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import jpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from landmarks.local_features import kept
from landmarks.mirrors import download
from landmarks.mirrors.images import UnreadablePhoto, decode, shrink
from landmarks.mirrors.shards import DamagedShard, TarShard, valid_id
from landmarks.mirrors.tables import read_table
from landmarks.neighbours import gallery
from landmarks.neighbours.nonlandmarks import read_ids
from landmarks.networks.torch_file import read_tensors
from landmarks.running import recipe
from landmarks.running.answer_settings import RecognitionSettings, VerificationSettings
from landmarks.running.command import InputError
from landmarks.running.features_file import is_whole, load_features, made_from, outline
from landmarks.running.settings import RunSettings
from landmarks.running.skipped import record_skipped, skipped_photos
from landmarks.scoring import solutions, submissions
from landmarks.training.cleaning import read_clean
from landmarks.training.scenes import read_categories

SECONDS = 4  # of processor time for one input, on a machine that does other things too
PEAK = 300 * 2**10  # KiB that one input may add to the most memory that this process has had
numbers = itertools.count()
# A bound of wall time would fail where two cores are shared by many.
hostile = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
PIECES = [
    b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(8), b"\0", b"../", b"/", b"\r\n", b"\r",
    b"\n", b'"', b",", b"[" * 3000, b"{a=" * 400, b"1" * 5000, b"-", b"nan", b"\xef\xbb\xbf", b"\xff\xfe",
    "\u202egpj.exe".encode(), "ａ１".encode(), b"\xed\xa0\x80", b"a" * 200_000, b" ", b"=", b"'", b"#", b"a.a.a.a.a.a",
]  # fmt: skip


@st.composite
def mutated(draw, originals) -> bytes:
    """One of the files with up to four faults: bytes changed, cut, put in, repeated, or another file's from there."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(data)))
        end = begin + draw(st.sampled_from([0, 1, 2, 4, 8, 64, 512, 10**9]))
        middle = draw(
            st.one_of(
                st.binary(max_size=8), st.sampled_from(PIECES), st.just(data[begin:end] * 3), st.sampled_from(originals)
            )
        )
        data = (data[:begin] + middle + data[end:])[: 2**20]
    return data


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture
def read_within_bounds(tmp_path):
    """Write a file into a folder of its own and read it: what comes back, or None for one of the errors."""

    def read(reader, data: bytes, name: str, *errors: type[Exception], message_limit: int = 20_000):
        inside = tmp_path / "work" / str(next(numbers))
        inside.mkdir(parents=True)
        (inside / name).write_bytes(data)
        outside = sorted(path for path in tmp_path.rglob("*") if inside not in path.parents)
        begun, before = time.process_time(), peak()
        try:
            return reader(inside / name)
        except errors as error:
            assert str(error) and len(str(error)) < message_limit
            return None
        finally:
            seconds, more = time.process_time() - begun, peak() - before
            assert sorted(path for path in tmp_path.rglob("*") if inside not in path.parents) == outside
            for path in inside.iterdir():
                path.unlink()
            inside.rmdir()
            assert seconds < SECONDS and more < PEAK

    return read


# Tars

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


# Photos


def encoded(form: str, mode: str = "RGB", **options) -> bytes:
    data = io.BytesIO()
    Image.open(io.BytesIO(jpeg(0))).convert(mode).save(data, form, **options)
    return data.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


SIDES = st.sampled_from([0, 1, 2, 40, 65535, 2**31 - 1, 2**32 - 1])
BOMB = zlib.compress(bytes(20_000_000))


@st.composite
def pngs(draw) -> bytes:
    """Whole ones, as their checksums say."""
    some = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"IEND"]
    depth, colour = draw(st.sampled_from([1, 8, 16, 99])), draw(st.sampled_from([0, 2, 3, 4, 6, 9]))
    first = struct.pack(">IIBBBBB", draw(SIDES), draw(SIDES), depth, colour, 0, 0, draw(st.integers(0, 2)))
    body = st.sampled_from([b"", b"x\0\0" + BOMB, b"x\0\1\0\0\0" + BOMB, BOMB, bytes(26), zlib.compress(bytes(5000))])
    chunks = draw(st.lists(st.tuples(st.sampled_from(some), body | st.binary(max_size=30)), max_size=5))
    return png((b"IHDR", first), *chunks, (b"IDAT", zlib.compress(bytes(5000))), (b"IEND", b""))


PHOTOS = [
    jpeg(0), jpeg(1, progressive=True), encoded("JPEG", "CMYK"), encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    encoded("PNG"), encoded("PNG", "P"), encoded("PNG", "LA"), encoded("WEBP"), encoded("WEBP", lossless=True),
    encoded("GIF"), encoded("BMP"),
]  # fmt: skip


def read_photo(path: Path) -> None:
    data = path.read_bytes()
    assert decode(data, 32).shape == (32, 32, 3)
    assert min(Image.open(io.BytesIO(shrink(data, 32))).size) <= 32


@hostile
@given(mutated(PHOTOS) | pngs())
def test_photos(read_within_bounds, data):
    read_within_bounds(read_photo, data, "x.jpg", UnreadablePhoto, message_limit=300)


def progressive(side: int, scans: int) -> bytes:
    """A grey JPEG whose scans say in 30 bytes that nothing changes: each takes as long as a whole photo."""

    def table(kind: int, symbol: int) -> bytes:
        return b"\xff\xc4" + struct.pack(">HB", 20, kind) + bytes([1] + [0] * 15 + [symbol])

    def scan(first: int, last: int, data: bytes) -> bytes:
        return b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([1, 0, first, last, 0]) + data

    blocks = (side // 8) ** 2
    runs = "011111111111111" * -(-blocks // 32767)  # of 32,767 blocks without a coefficient
    runs += "1" * (-len(runs) % 8)
    nothing = int(runs, 2).to_bytes(len(runs) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\1\x11\0"
    head = b"\xff\xd8\xff\xdb" + struct.pack(">HB", 67, 0) + b"\1" * 64 + frame + table(0, 0) + table(16, 0xE0)
    return head + scan(0, 0, bytes(-(-blocks // 8))) + scan(1, 63, nothing) * scans + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused():
    assert decode(progressive(400, 20), 16).shape == (16, 16, 3)
    begun = time.process_time()
    with pytest.raises(UnreadablePhoto, match="more than 100 scans"):
        decode(progressive(8000, 5000), 16)
    assert time.process_time() - begun < 1


# Tables

TABLES = {
    "train": b"id,url,landmark_id\nabc1,http://x/1,5\nabc2,http://x/2,6\n",
    "recognition": b"id,landmarks,Usage\nabc1,5 6,Public\nabc2,,Private\nabc3,,Ignored\n",
    "retrieval": b"id,images,Usage\nabc1,abc5 abc6,Public\nabc2,abc5,Private\nabc3,None,Ignored\n",
    "recognition submission": b"id,landmarks\nabc1,5 0.5\nabc2,\n",
    "retrieval submission": b"id,images\nabc1,abc5 abc6\nabc2,abc5\n",
    "clean": b"landmark_id,images\n5,abc1 abc2\n6,abc3\n",
    "categories": b"/a/airfield 2\n/a/alcove 1\n",
    "ids": b"abc1\nabc2\n",
}
SOLUTIONS = (
    solutions.Solution({"abc1": [5]}, {"abc2": []}, {"abc3"}),
    solutions.Solution(solutions.IdLists({"abc1": "abc5"}), solutions.IdLists({"abc2": "abc6"}), {"abc3"}),
)
READERS = [
    lambda path: read_table(path, ["id", "landmark_id"]),
    lambda path: read_table(path, ["url"]),
    solutions.read_recognition_solution,
    solutions.read_retrieval_solution,
    lambda path: submissions.read_recognition(path, SOLUTIONS[0]),
    lambda path: submissions.read_retrieval(path, SOLUTIONS[1]),
    lambda path: submissions.check("recognition", path, {"abc1", "abc2"}),
    lambda path: submissions.check("retrieval", path, {"abc1", "abc2"}, {"abc5"}),
    read_clean,
    read_categories,
    read_ids,
]
CELLS = [
    "abc1", "ABC1", "abc2", "abc5 abc6", "5", "5 0.5", "5 nan", "5 1e999", "Public", "", " ", "-1", "9" * 30, "1_000",
    "٣", "=1+1", "../../owned", "a\0b", "\u202egpj", "x" * 2**20, "1" * 5000, "\r", "a\nb", '"', '""', "'", "\ufeff",
]  # fmt: skip


@st.composite
def tables(draw) -> bytes:
    head = draw(st.sampled_from([data.split(b"\n")[0].decode() for data in TABLES.values()]))
    rows = draw(st.lists(st.lists(st.sampled_from(CELLS) | st.text(max_size=5), max_size=4), max_size=5))
    end = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    text = end.join([head, *map(",".join, rows)]) + draw(st.sampled_from(["", end, '"', "\0"]))
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-7", "utf-32-le"])), "replace")


@hostile
@given(st.sampled_from(READERS), tables() | mutated(list(TABLES.values())))
def test_tables(read_within_bounds, reader, data):
    read_within_bounds(reader, data, "x.csv", InputError)


@pytest.mark.parametrize("row", ["1,2,abc", "1,2,a c"])
def test_a_row_with_a_cell_too_many_does_not_shift_the_others(read_within_bounds, row):
    assert read_within_bounds(read_clean, f"landmark_id,images\n{row}\n".encode(), "x.csv", InputError) is None


@pytest.mark.parametrize("rows", ["1,0,5", "0,99999999999999999999", "0,5\0", "0"])
def test_labels(read_within_bounds, rows):
    import model as models

    data = f"class,landmark_id\n{rows}\n".encode()
    assert read_within_bounds(models.load_labels, data, "labels.csv", InputError) is None


# Recipes

RECIPES = [path.read_bytes() for path in sorted(recipe.RECIPES.glob("*.toml"))]
VALUES = ["1", "inf", "-nan", "1" * 5000, "true", '"a\\u0000b"', '"\\u202egpj"', "[]", "[[[[]]]]", "{}", "{a.a.a = 1}",
          "1979-05-27", "0x7fffffffffffffffffff", "'''\n\r\n'''", "[" * 3000, "{a=" * 300, '"../../owned"']  # fmt: skip


@st.composite
def recipes(draw) -> bytes:
    keys = st.sampled_from([*recipe.SECTION_OF, "a", '""', "[[a]]\nb", "backbone" + ".a" * 1500, "[a.a]\nb"])
    lines = draw(st.lists(st.tuples(keys, st.sampled_from(VALUES)), max_size=4))
    return "\n".join(f"{key} = {value}" for key, value in lines).encode()


@hostile
@given(recipes() | mutated(RECIPES))
def test_recipes(read_within_bounds, data):
    read_within_bounds(lambda path: recipe.from_flat(recipe._read(path), path), data, "x.toml", InputError)


@pytest.mark.parametrize(
    "data",
    [
        b"a = " + b"[" * 5000,
        b"a = " + b"{a = " * 5000,
        b"seed = " + b"1" * 5000,
        b"backbone" + b".a" * 1500 + b" = 1",
        b"backbone" + b".a" * 100_000 + b" = 1",
        b'"" = 1',
        b"time_limit = inf",  # a timer of that length fails in its thread
    ],
)
def test_a_hostile_recipe_is_one_line(read_within_bounds, data):
    read = read_within_bounds(lambda path: recipe.from_flat(recipe._read(path), path), data, "x.toml", InputError)
    assert read is None


# Arrays


def npy(array) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def npy_of(text: str, data: bytes = bytes(64), version: tuple[int, int] = (1, 0)) -> bytes:
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text.encode("latin1") + data


def described(descr: str, shape: str) -> bytes:
    return npy_of(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n")


def npz(members, compression: int = zipfile.ZIP_STORED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in members:
            with suppress(UserWarning):  # two of a name
                file.writestr(name, content)
    return data.getvalue()


WHOLE = {
    "ids.npy": npy(np.array(["abc1", "abc2"])),
    "embeddings.npy": npy(np.eye(2, 3, dtype="float16")),
    "landmark.npy": npy(np.array([5, 6])),
    "made_from.npy": npy(np.array("made from this")),
}
LOCAL = npz([("abc1.npy", npy(np.ones((3, 12), np.uint8))), ("abc2.npy", npy(np.ones((0, 8), np.uint8)))])
ARRAYS = [
    *WHOLE.values(),
    *(described(descr, shape) for descr in ("<f2", "<U4", "|O", "<U200000000", "<M8[s]", "|V0", "|u1")
      for shape in ("(2,)", "(2, 3)", "(10**12, 3)", "(1000000000000, 3)", "(True, 9)", "(-1,)", "(0, 2000000000)")),
    npy_of("{'descr': (((", version=(2, 0)), npy_of("{'descr': '''"), npy_of("  1\n 2\n"), npy_of("(" * 9000),
    npy_of("-" * 9000 + "1"), npy_of("{" * 90), b"", b"\x93NUMPY", b"\x80\x04N.", b"PK\x03\x04",
]  # fmt: skip
MEMBERS = [*WHOLE, "abc1.npy", "../../owned.npy", "/owned", "a\0b.npy", "\u202eypn", "IDS.npy", "top_score.npy", "x/"]
COMPRESSIONS = [zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@st.composite
def npzs(draw) -> bytes:
    members = dict(draw(st.lists(st.tuples(st.sampled_from(MEMBERS), st.sampled_from(ARRAYS)), max_size=3)))
    return npz({**draw(st.sampled_from([WHOLE, {}])), **members}.items(), draw(st.sampled_from(COMPRESSIONS)))


def read_local(path: Path) -> list:
    there = kept.KeptFeatures([path])
    return [there[identity] for identity in there]


@hostile
@given(npzs() | mutated([npz(WHOLE.items()), LOCAL, npz(WHOLE.items(), zipfile.ZIP_DEFLATED)]))
def test_arrays(read_within_bounds, data):
    for reader in (load_features, outline, read_local):
        read_within_bounds(reader, data, "x.npz", ValueError, OSError, InputError)
    for reader in (is_whole, made_from, lambda path: kept._whole_ids([path])):
        read_within_bounds(reader, data, "x.npz")


GALLERY = {
    "files.npy": npy(np.array(["images_000.npz"])),
    "landmark.npy": npy(np.array([5, 6])),
    "weight.npy": npy(np.array(0.5)),
    "calibrated.npy": npy(np.array(True)),
    "made_from.npy": npy(np.array("made from this")),
}


def read_gallery(path: Path) -> gallery.Gallery:
    return gallery.opened(RunSettings(work=path.parent), [], RecognitionSettings(), VerificationSettings())


@hostile
@given(
    mutated([npz(GALLERY.items())])
    | st.dictionaries(st.sampled_from([*GALLERY]), st.sampled_from(ARRAYS), max_size=3).map(
        lambda spoilt: npz({**GALLERY, **spoilt}.items())
    )
)
def test_a_gallery(read_within_bounds, data):
    assert read_within_bounds(read_gallery, data, "gallery.npz", InputError) is None  # no features are there


BOMBS = [("ids.npy", npy(np.array(["a"] * 10**7))), ("embeddings.npy", npy(np.zeros((10**7, 1), "float16")))]
FAULTY = [
    npy_of("{'descr': '''"),
    npy_of("  1\n 2\n"),
    described("<U4", "(1000000000000,)"),
    described("|u1", "(True,)"),
]


@pytest.mark.parametrize("data", [npz([("ids.npy", one), ("embeddings.npy", one)]) for one in FAULTY])
def test_arrays_that_numpy_chokes_on_are_no_features(read_within_bounds, data):
    for reader in (load_features, outline, read_local):
        assert read_within_bounds(reader, data, "x.npz", ValueError, InputError) is None
    assert not read_within_bounds(is_whole, data, "x.npz")


def test_features_are_not_unpacked(read_within_bounds):
    assert read_within_bounds(load_features, npz(BOMBS, zipfile.ZIP_DEFLATED), "x.npz", ValueError) is None


# Weights

PICKLES = [b"(lp0\n.", b"\x80\x02}q\0.", b"cos\nsystem\n(S'true'\ntR.", b"ccollections\nOrderedDict\n)R.", b"(I1\nd."]
OPCODES = [bytes([code]) for code in range(256)] + [b"r\xff\xff\xff\x0f", b"p99999999\n", b"\x96" + b"\xff" * 8]


@hostile
@given(mutated(PICKLES) | st.lists(st.sampled_from([*OPCODES, *PICKLES]), max_size=12).map(b"".join))
def test_weights(read_within_bounds, data):
    read_within_bounds(read_tensors, data, "x.pth", InputError)


def test_a_pickle_does_not_say_how_long_the_message_is(read_within_bounds):
    data = b"c" + b"a" * 100_000 + b"\nsystem\n."
    assert read_within_bounds(read_tensors, data, "x.pth", InputError, message_limit=1000) is None


def test_a_pickle_does_not_say_how_much_memory_is_taken(read_within_bounds):
    assert read_within_bounds(read_tensors, b"Nr\xff\xff\xff\x01.", "x.pth", InputError) is None


# Answers of a server

PACKED = gzip.compress(bytes(5_000_000))
LIMIT = 100_000


@st.composite
def answers(draw):
    headers = {
        "Content-Length": ["0", "5", "-1", "99999999999999999999", "many", "5, 5", "1" * 5000, "٣"],
        "Content-Range": ["bytes 0-4/5", "bytes 5-4/5", "bytes */5", "bytes 0-4/*", "x", f"bytes 0-4/{'9' * 5000}"],
        "Content-Encoding": ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity", "x"],
        "Transfer-Encoding": ["chunked", "x"],
        "Location": ["/file", "//[", "file:///etc/passwd", "http://127.0.0.1:1/", "\x00", "x" * 9000, "http://a..b/"],
        "Retry-After": ["1", "-1", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "x"],
        "ETag": ['"x"', "W/", "\xff", "x" * 9000],
        "Set-Cookie": ["x=y; Expires=9", "=;"],
        "X": ["x" * 70_000],
    }
    lines = draw(st.lists(st.sampled_from(sorted(headers)), max_size=4, unique=True))
    status = draw(st.sampled_from("200 200 200 206 206 204 301 302 304 308 401 404 416 429 500 503 099 1000 x".split()))
    bodies = st.sampled_from([b"photo", b"", PACKED, bytes(LIMIT + 1), b"5\r\nphoto\r\n0\r\n\r\n", b"ffffffffff\r\nx"])
    rest = "".join(f"{name}: {draw(st.sampled_from(headers[name]))}\r\n" for name in lines)
    raw = f"HTTP/1.1 {status} x\r\n{rest}\r\n".encode() + draw(bodies)
    return draw(st.sampled_from([raw] * 9 + [raw[:20], b"", b"\xff" * 100, b"HTTP/1.1 100 x\r\n\r\n" * 9 + raw]))


def send(raw: bytes):
    def answer(handler):
        handler.close_connection = True
        with suppress(OSError):
            handler.wfile.write(raw)

    return answer


@pytest.fixture
def server(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (1, 1))
    (tmp_path / "served").mkdir()
    (tmp_path / "served/file").write_bytes(b"photo")
    monkeypatch.setattr(logging.getLogger("urllib3.connection"), "disabled", True)  # or it tells of every odd header
    yield serve(tmp_path / "served")
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets that wait to be collected
@settings(hostile, max_examples=hostile.max_examples // 3)
@given(st.lists(answers(), min_size=1, max_size=4))
def test_answers(server, read_within_bounds, some):
    url = f"{server.url}/file"

    def fetch(path: Path) -> None:
        server.faults["/file"] = list(map(send, some))
        if download.download(url, path, resume=True, limit=LIMIT, patience=5):
            assert path.stat().st_size <= LIMIT and not path.with_name("x.part").exists()

    def take(_: Path) -> None:
        server.faults["/file"] = list(map(send, some))
        assert len(download.read(url, LIMIT, allow_private=True)) <= LIMIT

    def ask(_: Path) -> None:
        server.faults["HEAD /file"], server.faults["/file"] = list(map(send, some)), list(map(send, some))
        download.absence(url, patience=5)

    read_within_bounds(fetch, b"", "x", InputError)
    read_within_bounds(take, b"", "x", OSError)
    read_within_bounds(ask, b"", "x", InputError)


# Models: each would leave a file `owned` if it ran

MARKER = "import os; os.mkdir('owned')"
FUNCTIONS = [
    {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"},
    {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"},
    {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "exec"},
    {"module": "subprocess", "class_name": "Popen", "config": {"args": ["mkdir", "owned"]}, "registered_name": None},
    {"module": "os", "class_name": "mkdir", "config": {"path": "owned"}, "registered_name": None},
    {"module": "os", "class_name": "mkdir", "config": {"path": "owned"}, "registered_name": "landmarks>GeM"},
    {"module": "os", "class_name": "system", "config": "mkdir owned", "registered_name": "builtins>eval"},
    {"module": "keras.src.utils.python_utils", "class_name": "function", "config": "func_load"},
    {"module": "keras.config", "class_name": "function", "config": "enable_unsafe_deserialization"},
    {"module": "keras.utils", "class_name": "get_file", "config": {"fname": "owned", "origin": "file:///etc/passwd"}},
    {"module": "keras.saving", "class_name": "load_model", "config": {"filepath": "owned", "safe_mode": False}},
    {"module": "builtins", "class_name": "__lambda__", "config": {"value": MARKER}},
    {"class_name": "__lambda__", "config": {"value": "4wAAAAA=\n"}},
    {"module": "keras.layers", "class_name": "Lambda", "config": {"function": MARKER}},
    {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "../owned"}},
    {"module": "tensorflow", "class_name": "function", "config": "io.write_file"},
    {"module": "../owned", "class_name": "x\u202e", "config": {}},
    {"module": "keras.layers", "class_name": "Dense", "config": {"units": 10**12}},
]


def put_into(config: dict, place: str, thing: dict) -> dict:
    layer = config["config"]["layers"][1]
    if place == "layer":
        config["config"]["layers"][1] = {**thing, "name": layer["name"], "inbound_nodes": layer["inbound_nodes"]}
    elif place == "loss":
        config["compile_config"] = {"loss": thing, "optimizer": thing, "metrics": [thing]}
    elif place == "whole":
        return thing
    else:
        layer["config"][place] = thing
    return config


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, bytes]:
    """What is in a .keras file that loads."""
    keras = pytest.importorskip("keras")
    photos = keras.Input((4, 4, 3))
    path = tmp_path_factory.mktemp("model") / "model.keras"
    keras.Model(photos, keras.layers.Dense(2)(keras.layers.Flatten()(photos))).save(path)
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a model file as both readers do: True where one took it."""
    import model as models
    from landmarks.training.scenes import Classifier

    monkeypatch.chdir(tmp_path)

    def try_both(data: bytes) -> list[bool]:
        folder = tmp_path / "work" / str(next(numbers))
        folder.mkdir(parents=True)
        (folder / "model.keras").write_bytes(data)
        took = []
        for reader in (models.load, lambda path: Classifier(path, 2)):
            begun = time.process_time()
            try:
                reader(folder / "model.keras")
                took.append(True)
            except InputError as error:
                assert len(str(error)) < 1000
                took.append(False)
            assert time.process_time() - begun < 20
        assert [path.name for path in tmp_path.iterdir()] == ["work"]
        assert [path.name for path in folder.iterdir()] == ["model.keras"]
        return took

    return try_both


def test_a_whole_model_loads(load, parts):
    assert load(npz(parts.items())) == [True, True]


@pytest.mark.parametrize("place", ["layer", "activation", "kernel_initializer", "dtype", "loss", "whole"])
def test_no_code_of_a_model_runs(load, parts, place):
    for thing in FUNCTIONS:
        config = put_into(json.loads(parts["config.json"]), place, thing)
        took = load(npz({**parts, "config.json": json.dumps(config).encode()}.items()))
        assert place == "loss" or not any(took), thing


def test_damaged_models(load, parts):
    weights = parts["model.weights.h5"]
    whole = npz(parts.items())
    for changed in (
        {"model.weights.h5": weights[: len(weights) // 2]},
        {"model.weights.h5": b""},
        {"config.json": b"[" * 100_000},
        {"config.json": b"\xff\xfe"},
        {"config.json": b'{"a": 1, "a": NaN}'},
    ):
        assert not any(load(npz({**parts, **changed}.items())))
    for data in (b"", whole[:-30], weights, whole[: len(whole) // 2]):
        assert not any(load(data))
    for name in ("../../owned", str(Path.cwd() / "owned"), "assets/../../../owned", "a\0b", "config.json/owned"):
        load(npz([*parts.items(), (name, b"owned")]))  # what is not asked for stays in the file


def test_a_model_is_not_unpacked(load, parts):
    bomb = parts["config.json"] + b" " * 50_000_000
    assert load(npz({**parts, "config.json": bomb}.items(), zipfile.ZIP_DEFLATED)) == [False, False]


@settings(hostile, max_examples=10)
@given(st.data())
def test_models(load, parts, data):
    load(data.draw(mutated([npz(parts.items())])))


@pytest.mark.parametrize("content", [b"", b"x" * 1000, b"\x0a\xff\xff\xff\xff\x0f", b"\x08\x01" * 1000])
def test_a_damaged_savedmodel_is_one_line(tmp_path, content):
    pytest.importorskip("tensorflow")
    from landmarks.local_features.extractors import open_extractor

    for name in ("saved_model.pb", "saved_model.pbtxt"):
        (tmp_path / name).mkdir(parents=True) if not content else (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="is no SavedModel"):
            open_extractor("savedmodel", tmp_path)


@settings(hostile, max_examples=30)
@given(mutated([b"\x08\x08\x3a\x10\x0a\x00\x12\x01g\x5a\x03\x0a\x01x\x62\x03\x0a\x01y", b"\x08\x08"]))
def test_onnx(read_within_bounds, data):
    pytest.importorskip("onnxruntime")
    from landmarks.training.scenes import Classifier

    read_within_bounds(lambda path: Classifier(path, 2), data, "x.onnx", InputError)
