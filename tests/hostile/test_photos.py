"""Photos: damaged, giant, of texts that are packed, of thousands of scans."""

import io
import struct
import time
import zlib
from pathlib import Path

import pytest
from conftest import jpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from strangers import hostile, mutated

from landmarks.mirrors.images import UnreadablePhoto, decode, shrink


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
