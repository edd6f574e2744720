import io

import numpy as np
import pytest
from conftest import jpeg
from PIL import Image

from landmarks.mirrors import images
from landmarks.mirrors.images import UnreadablePhoto, decode, decode_at, shrink

COLOUR = (200, 100, 50)


def encode(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, form, **options)
    return encoded.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_colour_and_shape(form):
    array = decode(encode(Image.new("RGB", (90, 60), COLOUR), form), 32)
    assert array.shape == (32, 32, 3)
    assert array.dtype == np.uint8
    assert np.abs(array.astype(int) - COLOUR).max() <= 3


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_other_modes_are_read_as_their_rgb(mode):
    image = Image.new("RGB", (40, 40), (255, 255, 255)).convert(mode)
    array = decode(encode(image, "PNG"), 16)
    assert array.min() >= 253


def test_palette_with_transparency_keeps_its_colour():
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, *COLOUR])
    assert np.abs(decode(encode(image, "PNG", transparency=b"\x00\xff"), 16).astype(int) - COLOUR).max() <= 1


def test_cmyk_jpeg():
    image = Image.new("RGB", (64, 64), COLOUR).convert("CMYK")
    assert np.abs(decode(encode(image), 16).astype(int) - COLOUR).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation):
    upright = np.zeros((60, 80, 3), np.uint8)
    upright[:30, :40] = (255, 0, 0)  # red upper left, green upper right, blue lower left
    upright[:30, 40:] = (0, 255, 0)
    upright[30:, :40] = (0, 0, 255)
    # What a camera stores so that a viewer that applies the tag shows `upright` (EXIF 2.32, tag 0x0112).
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = decode(encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif, quality=95), 32).astype(int)
    assert np.abs(array[4, 4] - (255, 0, 0)).max() < 30
    assert np.abs(array[4, 28] - (0, 255, 0)).max() < 30
    assert np.abs(array[28, 4] - (0, 0, 255)).max() < 30


def test_broken_exif_does_not_lose_the_photo():
    data = encode(Image.new("RGB", (64, 64), COLOUR), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert decode(data, 16).shape == (16, 16, 3)


# A DCT scales by 1/2, 1/4 or 1/8, and no side to less than the square's: 640 x 480 by 1/2 for 192 px alone.
@pytest.mark.parametrize(("form", "decoded"), [("JPEG", 2), ("PNG", 1)])
def test_several_sizes_are_what_each_is_alone_and_are_decoded_once_for_a_scale(monkeypatch, form, decoded):
    data = encode(Image.effect_noise((640, 480), 80).convert("RGB"), form)
    alone = [decode(data, size) for size in (192, 256, 320)]
    calls, upright = [], images._upright
    monkeypatch.setattr(images, "_upright", lambda image: calls.append(image.size) or upright(image))
    for one, other in zip(decode_at(data, [192, 256, 320]), alone, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(calls) == decoded


def test_unreadable_photos_say_why(monkeypatch):
    whole = jpeg(0, (200, 200))
    broken = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "text": b"<html>404</html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "16 bit": encode(Image.fromarray(np.zeros((8, 8), np.uint16)), "PNG"),
    }
    for name, data in broken.items():
        with pytest.raises(UnreadablePhoto, match=r"\w"):
            decode(data, 16)
            pytest.fail(name)
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 100)
    with pytest.raises(UnreadablePhoto, match="too many"):
        decode(encode(Image.new("RGB", (64, 64)), "PNG"), 16)


def test_the_reason_is_the_same_every_time():
    reasons = set()
    for data in (b"", b"text" * 9, b"<html>" * 99):
        with pytest.raises(UnreadablePhoto) as error:
            decode(data, 16)
        reasons.add(str(error.value))
    assert reasons == {f"not a photo ({', '.join(images.FORMATS)})"}  # and no place in memory


def test_a_phones_heic_is_read_upright_and_within_the_bounds(monkeypatch):
    pytest.importorskip("pillow_heif", reason="pip install pillow-heif, for photos of phones")
    upright = np.zeros((120, 160, 3), np.uint8)
    upright[:60, :80] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # as a phone that is held upright writes it, beside the container's own `irot`
    data = encode(Image.fromarray(np.ascontiguousarray(np.rot90(upright))), "HEIF", exif=exif.tobytes(), quality=90)
    assert b"irot" in data
    for array in (decode(data, 32), decode(shrink(data, 60), 32)):
        assert np.abs(array[4, 4].astype(int) - (255, 0, 0)).max() < 40
        assert max(array[4, 28].max(), array[28, 4].max(), array[28, 28].max()) < 40
    assert Image.open(io.BytesIO(shrink(data, 60))).size == (80, 60)
    for broken in (data[: len(data) // 2], data[:40]):
        with pytest.raises(UnreadablePhoto, match=r"\w"):
            decode(broken, 32)
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 100)
    with pytest.raises(UnreadablePhoto, match="too many"):
        decode(data, 32)


def test_of_the_extra_only_heif_is_added():
    assert set(images.FORMATS) - {"HEIF"} == {"JPEG", "PNG", "WEBP", "GIF", "BMP"}


def test_a_huge_jpeg_is_decoded_at_a_fraction(monkeypatch):
    data = encode(Image.new("RGB", (4000, 4000), COLOUR))
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 500 * 500)  # an eighth of each side
    assert np.abs(decode(data, 64).astype(int) - COLOUR).max() <= 3


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((400, 200), (200, 100)),
        ((200, 400), (100, 200)),
        ((40, 20), (40, 20)),  # nothing is enlarged
        ((3000, 90), (400, 90)),  # nor a panorama, whose longer side is bounded too
        ((90, 3000), (90, 400)),
        ((6000, 300), (400, 100)),
        ((2000, 1), (400, 1)),
    ],
)
def test_shrink_bounds_the_shorter_side_and_keeps_the_shape(size, expected):
    with Image.open(io.BytesIO(shrink(jpeg(1, size), 100))) as image:
        assert (image.size, image.format, image.mode) == (expected, "JPEG", "RGB")


def test_a_square_of_the_size_magnifies_no_side_of_a_shrunk_photo():
    """A fine pattern across the shorter side comes through as it does from the photo itself."""
    stripes = np.zeros((128, 512, 3), np.uint8)
    stripes[::2] = 255
    data = encode(Image.fromarray(stripes), quality=95, subsampling=0)
    contrast = [decode(photo, 128).astype(int).std() for photo in (data, shrink(data, 128))]
    assert contrast[0] > 100 and contrast[1] > 0.9 * contrast[0]
