from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import jpeg
from PIL import Image

from landmarks.local_features.drawing import CAPTION, GAP, MOST_LINES, draw_matches, draw_verified
from landmarks.local_features.points import LocalFeatures, Matching, decode

GREY, WHITE = (90, 90, 90), (255, 255, 255)


def photo(height, width):
    return np.full((height, width, 3), 90, np.uint8)


def test_lines_join_the_points_and_the_photos_stay():
    a, b = photo(80, 100), photo(120, 60)
    # From the upper end of the first photo to the lower: the second row of these, then the first.
    picture = draw_matches(a, b, np.array([[20.0, 70.0], [30.0, 10.0]]), np.array([[50.0, 30.0], [12.0, 110.0]]))
    assert picture.size == (100 + GAP + 60, CAPTION + 120)
    red, green = (255, 0, 0), (0, 255, 128)  # hsl(0) and hsl(150)
    second = np.array([100 + GAP, 0])
    for colour, start, end in (
        (red, np.array([30, 10]), second + [12, 110]),
        (green, np.array([20, 70]), second + [50, 30]),
    ):
        for part in (0.0, 0.2, 0.5, 0.9, 1.0):
            x, y = np.rint(start + part * (end - start)).astype(int) + [0, CAPTION]
            assert picture.getpixel((x, y)) == colour
    assert picture.getpixel((5, CAPTION + 5)) == picture.getpixel((100 + GAP + 30, CAPTION + 8)) == GREY
    assert picture.getpixel((5, CAPTION + 85)) == picture.getpixel((103, CAPTION + 5)) == WHITE  # below a; between
    drawn = (np.asarray(picture)[CAPTION:] != np.asarray(draw_matches(a, b, *np.empty((2, 0, 2))))[CAPTION:]).any(-1)
    assert 0.01 < drawn.mean() < 0.1


def test_of_very_many_inliers_some_are_drawn():
    a, b = photo(400, 10), photo(400, 10)
    points = np.stack([np.full(MOST_LINES * 2, 5), np.arange(MOST_LINES * 2) * 2], axis=1)
    between = np.asarray(draw_matches(a, b, points, points))[CAPTION:, 10 + GAP // 2]
    assert (between != 255).any(axis=1).sum() <= MOST_LINES * 3  # a line is three pixels wide
    assert (between[::4][:MOST_LINES] != 255).any(axis=1).all()


def test_without_inliers_the_photos_are_side_by_side():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((40, 70), (30, 20)))
    pixels = np.asarray(draw_matches(a, b, *np.empty((2, 0, 2))))
    np.testing.assert_array_equal(pixels[CAPTION:, :70], a)
    np.testing.assert_array_equal(pixels[CAPTION : CAPTION + 30, 70 + GAP :], b)
    assert pixels[:CAPTION].min() < 60 and np.median(pixels[:CAPTION]) == 255  # the caption


@pytest.mark.parametrize("size", [32, 400])
def test_each_verified_photo_is_drawn_beside_its_match(tmp_path, size):
    data = {"t0": jpeg(1, (64, 48)), "t1": jpeg(2, (48, 64)), "r0": jpeg(3, (64, 64)), "r1": jpeg(4, (60, 40))}
    shard_of = {"t0": "images_000", "t1": "images_001", "r0": "images_002", "r1": "images_000"}

    class Kept(dict):
        def shard_of(self, identity):
            return shard_of[identity]

    class Mirror:
        def stream(self, split, names):
            ids = [[i for i, name in shard_of.items() if name == shard and i[0] == {"test": "t", "train": "r"}[split]]
                   for shard in names]  # fmt: skip
            assert all(ids)  # only the shards that are needed
            yield from (
                SimpleNamespace(name=name, ids=own, read=data.get) for name, own in zip(names, ids, strict=True)
            )

    rng = np.random.default_rng(0)
    points, descriptors = rng.uniform(0, 30, (9, 2)).astype(np.float32), np.eye(9, dtype=np.float32)
    kept = Kept(dict.fromkeys(data, LocalFeatures(points, descriptors)))
    (tmp_path / "report").mkdir()
    (tmp_path / "report/old.png").touch()
    verified = pd.DataFrame({"match": ["r1", "r0"], "inliers": [9, 9]}, index=["t0", "t1"])
    draw_verified(verified, kept, kept, Mirror(), Matching(1.0, 0.5, 4.0), size, tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["t0.png", "t1.png"]
    for one, other in (("t0", "r1"), ("t1", "r0")):
        a, b = decode(data[one], size), decode(data[other], size)
        expected = draw_matches(a, b, points, points)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "report" / f"{one}.png")), np.asarray(expected))
