"""The built-in sample: a mirror of invented landmarks, rendered on the spot from a seed.

Each landmark is a small textured building. Four at a time are a family: they share colours, proportions and the plan of
their towers, and differ in the number and placing of windows and towers, in domes and masonry. Light, weather, side,
distance and clutter change with every view, so that colour alone does not tell a landmark.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from io import BytesIO
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from landmarks.running.command import InputError, check_stop
from landmarks.running.processes import begin_worker
from landmarks.running.threads import cores
from landmarks.sample.buildings import building
from landmarks.sample.scene import Camera, Face, Texture, box, corners, look, plain, revolve, rgb
from landmarks.sample.street import Stock, around, clutter, make_stock, photograph

if TYPE_CHECKING:
    import pandas as pd

FAMILY_SIZE = 4
KINDS = ("Abbey", "Basilica", "Castle", "Gate", "Museum", "Palace", "Tower", "Town_Hall")
PLACES = (
    "Amber Birches Cranes Dawn Elms Foxes Garlands Herons Ivy Juniper Kites Larks Meadows Nettles Otters Pines Quinces "
    "Ravens Swans Thistles Umber Violets Willows Yarrow"
).split()


def viewpoint(faces: list[Face], rng: np.random.Generator) -> Camera:
    """A camera that sees the building from within 75 degrees of its front, near or far, whole or in part."""
    points = corners(faces).reshape(-1, 3)
    extent = np.ptp(points, axis=0).max()
    long, short = 320, int(rng.choice([180, 214, 240, 256]))
    size = (long, short) if rng.random() < 0.7 else (short, long)
    focal = rng.uniform(0.75, 1.7) * long
    share = np.exp(rng.uniform(np.log(0.5), np.log(1.3)))  # of the frame that the building would take
    distance = max(focal * extent / (share * long), extent * 0.6 + 6)
    side = np.radians(rng.triangular(-75, 0, 75))
    height = 1.7 if rng.random() < 0.7 else rng.uniform(3, 0.4 * distance)
    target = np.array([0, 0, points[:, 2].max() * rng.uniform(0.25, 0.6)])
    target += rng.uniform(-0.2, 0.2, 3) * extent * [1, 1, 0.4]
    centre = np.array([distance * np.sin(side), -distance * np.cos(side), height])
    return look(centre, target, focal, size, np.radians(rng.normal(0, 2.5)))


@lru_cache(1)
def _stock(seed: int) -> Stock:
    return make_stock(np.random.default_rng([seed, 0]))


@lru_cache(1)
def landmark_building(seed: int, landmark: int) -> list[Face]:
    """The faces of a sample's landmark number `landmark`, counted from 0."""
    family, member = divmod(landmark, FAMILY_SIZE)
    return building(np.random.default_rng([seed, 1, family]), np.random.default_rng([seed, 2, landmark]), member)


def landmark_view(seed: int, landmark: int, view: int) -> tuple[Image.Image, Camera]:
    """A photo of that landmark and the true camera it was taken with: `scene.project` tells where each point went."""
    return _view(landmark_building(seed, landmark), seed, np.random.default_rng([seed, 3, landmark, view]))


def _view(faces: list[Face], seed: int, rng: np.random.Generator) -> tuple[Image.Image, Camera]:
    camera = viewpoint(faces, rng)
    points = corners(faces).reshape(-1, 3)
    things = clutter(camera, points, _stock(seed), rng, amount=rng.uniform(0, 10), most_hidden=rng.uniform(0, 0.5))
    return photograph(faces + things, camera, _stock(seed), rng), camera


def other_view(seed: int, view: int) -> Image.Image:
    """A picture of no landmark: by turns a building seen only once, a still life, another such building, a street."""
    rng = np.random.default_rng([seed, 4, view])
    if view % 2 == 0:
        return _view(building(np.random.default_rng([seed, 5, view]), rng, 0), seed, rng)[0]
    size, focal = (320, int(rng.choice([180, 214, 240]))), rng.uniform(240, 500)
    if view % 4 == 3:
        camera = look(np.array([0, 0, rng.uniform(1.6, 5)]), np.array([0, 60, rng.uniform(1, 9)]), focal, size)
        far = around(camera, 40, 0)[None]
        things = clutter(camera, far, _stock(seed), rng, amount=rng.uniform(5, 30), most_hidden=1)
    else:
        camera = look(np.array([0, 0, rng.uniform(1.2, 2.2)]), np.array([0, 4, rng.uniform(0.3, 0.9)]), focal, size)
        things = clutter(camera, around(camera, 20, 0)[None], _stock(seed), rng, amount=0, most_hidden=0)
        for _ in range(rng.integers(2, 8)):
            things += _object(around(camera, rng.uniform(2.5, 5), rng.uniform(-0.8, 0.8)), rng)
    return photograph(things, camera, _stock(seed), rng)


def _object(place: np.ndarray, rng: np.random.Generator) -> list[Face]:
    """A vase or a box."""
    colours = rng.uniform(0.3, 1) * (60 + 0.75 * rng.integers(0, 256, (2, 3)))
    skin = Image.new("RGB", (64, 64), rgb(colours[0]))
    draw = ImageDraw.Draw(skin)
    for y in range(0, 64, int(rng.integers(8, 65))):
        draw.rectangle([0, y, 63, y + rng.integers(2, 12)], rgb(colours[1]))
    texture, radius, height = Texture(skin), rng.uniform(0.15, 0.6), rng.uniform(0.3, 1.4)
    if rng.random() < 0.3:
        return box(place, rng.uniform(0.3, 1.2, 3), texture, texture, plain(colours[0]))
    profile = zip(radius * rng.uniform(0.3, 1, 6), np.linspace(0, height, 6), strict=True)
    return revolve(place[:2], list(profile), 16, texture)


def _identity(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def photo(url: str) -> bytes:
    """The JPEG of "sample:SEED/LANDMARK/VIEW", where LANDMARK is `none` for a picture of no landmark."""
    seed, landmark, view = url.removeprefix("sample:").split("/")
    if landmark == "none":
        image = other_view(int(seed), int(view))
    else:
        image = landmark_view(int(seed), int(landmark), int(view))[0]
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=60 + int(_identity(url), 16) % 31)
    return buffer.getvalue()


def listing(
    seed: int = 0, landmarks: int = 24, views: tuple[int, int] = (20, 30), others: int = 150
) -> tuple["pd.DataFrame", dict[int, str]]:
    """The photos of a sample, `id`, `url`, `landmark_id` (NA: of none) and `split`, and its landmarks' category names.

    The same arguments give the same photos, with one release of NumPy and Pillow to the byte. A landmark has `views`
    photos, at least and at most: a fifth of them test and a fifth index, of few ones up to three. Of the `others` two
    thirds are test and one third index. The urls are those that `photo` takes: "sample:SEED/LANDMARK/VIEW" holds the
    arguments of `landmark_view`, which also gives the camera. Its LANDMARK counts from 0; it is not the id.

    Raises InputError if the seed is negative.
    """
    import pandas as pd  # here, like Progress, because the workers import this module and are to start fast

    if seed < 0:
        raise InputError(f"the seed is {seed}: give 0 or more")
    rng = np.random.default_rng([seed, 6])
    numbers = rng.choice(100_000, landmarks, replace=False).tolist()
    names = rng.permutation([f"{kind}_of_{place}" for kind in KINDS for place in PLACES])[:landmarks]
    categories = {
        number: f"http://commons.wikimedia.org/wiki/Category:{name}"
        for number, name in zip(numbers, names, strict=True)
    }
    rows = []
    for landmark, number in enumerate(numbers):
        count = int(rng.integers(views[0], views[1] + 1))
        held_out = max(round(count / 5), min(3, count // 3))
        splits = ["test"] * held_out + ["index"] * held_out + ["train"] * (count - 2 * held_out)
        rows += [(f"sample:{seed}/{landmark}/{view}", number, split) for view, split in enumerate(splits)]
    rows += [(f"sample:{seed}/none/{view}", None, ("test", "test", "index")[view % 3]) for view in range(others)]
    photos = pd.DataFrame(rows, columns=["url", "landmark_id", "split"]).astype({"landmark_id": "Int64"})
    photos["id"] = photos["url"].map(_identity)
    return photos, categories


def render(urls: Sequence[str]) -> dict[str, bytes]:
    """The photos by url, rendered in fresh processes, one a core: a fork of one that runs TensorFlow may hang."""
    from landmarks.running.progress import Progress

    rendered = {}
    pool = ProcessPoolExecutor(cores(), get_context("spawn"), begin_worker)
    try:
        results = Progress(pool.map(photo, urls, chunksize=8), "sample", len(urls), unit=" photos")
        for url, data in zip(urls, results, strict=True):
            rendered[url] = data
            check_stop()
    except BrokenProcessPool:
        check_stop()  # SIGTERM may have gone to the workers too
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return rendered
