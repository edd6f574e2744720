"""The built-in sample: a mirror of invented landmarks, rendered on the spot from a seed.

Each landmark is a small textured building. Four at a time share a family (colours, proportions, shape of the towers) and
differ in structure: the number and placing of windows and towers, domes, masonry. Light, weather, distance, side
and clutter change with every view, so that colour alone does not tell a landmark.
"""

import hashlib
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from scene import Camera, Face, Texture, box, corners, gable, look, project, render, revolve

PIXELS_PER_METRE = 14  # of the facades: a building that fills a 320 px frame twice over is still sharp
FAMILY_SIZE = 4
TOWERS = {  # where towers stand, in half widths and half depths of the main block
    "none": [],
    "front": [(0, -1)],
    "pair": [(-1, -1), (1, -1)],
    "left": [(-1, -1)],
    "right": [(1, -1)],
    "four": [(-1, -1), (1, -1), (-1, 1), (1, 1)],
    "centre": [(0, 0)],
    "outer": [(-1.3, -0.5), (1.3, -0.5)],
}
WINDOWS = ("rectangle", "arch", "pointed", "round")
MASONRY = ("brick", "ashlar", "stripes", "plaster", "timber", "chequer")
TOPS = ("spire", "pyramid", "dome", "onion", "lantern", "flat")
ROOFS = ("gable", "cross", "hip", "flat", "dome")


class Style(NamedTuple):
    """What a facade is drawn from. Colours are RGB 0..255, lengths metres."""

    wall: np.ndarray
    trim: np.ndarray
    roof: np.ndarray
    masonry: str
    windows: tuple[str, str]  # their shape on the ground floor and above
    bay: float  # from window to window
    storey: float
    breadth: float  # of a window, as a part of the bay
    height: float  # of a window, as a part of the storey
    band: int  # a cornice every so many storeys


def _outline(shape: str, left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    middle, half = (left + right) / 2, (right - left) / 2
    if shape == "rectangle":
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    if shape == "round":
        angles = np.linspace(0, 2 * np.pi, 17)
        centre = (top + bottom) / 2
        return [(middle + half * np.cos(a), centre + half * np.sin(a)) for a in angles]
    rise = min((bottom - top) * 0.8, half * (1.0 if shape == "arch" else 2.2))
    across = np.linspace(-1, 1, 13)
    curve = np.sqrt(1 - across**2) if shape == "arch" else 1 - np.abs(across) ** 1.5
    head = [(middle + half * x, top + rise * (1 - y)) for x, y in zip(across, curve, strict=True)]
    return [*head, (right, bottom), (left, bottom)]


def _colour(colour: np.ndarray, gain: float = 1.0) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(colour * gain, 0, 255))


def _wall(style: Style, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Bare masonry of that many pixels."""
    image = Image.new("RGB", (width, height), _colour(style.wall))
    draw = ImageDraw.Draw(image)
    metre = PIXELS_PER_METRE
    if style.masonry in ("brick", "ashlar"):
        course, length = (metre * 0.4, metre * 0.8) if style.masonry == "brick" else (metre * 0.9, metre * 1.6)
        joint = _colour(style.wall, 0.72)
        for row, y in enumerate(np.arange(0, height, course)):
            draw.line([(0, y), (width, y)], joint)
            for x in np.arange(length / 2 * (row % 2), width, length):
                draw.line([(x, y), (x, y + course)], joint)
    elif style.masonry == "stripes":
        for y in np.arange(0, height, metre * 1.6):
            draw.rectangle([0, y, width, y + metre * 0.7], _colour(style.trim, 0.8))
    elif style.masonry == "chequer":
        side = metre * 1.1
        for row, y in enumerate(np.arange(0, height, side)):
            for x in np.arange(side * (row % 2), width, 2 * side):
                draw.rectangle([x, y, x + side, y + side], _colour(style.trim, 0.85))
    elif style.masonry == "timber":
        beam, pitch = _colour(style.roof, 0.55), metre * style.bay
        for x in np.arange(0, width + pitch, pitch):
            draw.line([(x, 0), (x, height)], beam, 4)
            draw.line([(x, 0), (x + pitch, metre * style.storey), (x, 2 * metre * style.storey)], beam, 3)
        for y in np.arange(0, height, metre * style.storey):
            draw.line([(0, y), (width, y)], beam, 4)
    stains = Image.fromarray(rng.integers(0, 256, (height // 24 + 2, width // 24 + 2), np.uint8))
    stains = stains.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image) * (0.84 + np.asarray(stains)[..., None] / np.float32(800))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def facade(
    style: Style, width: float, height: float, rng: np.random.Generator, door: bool = False, rose: bool = False
) -> Texture:
    """A wall of that many metres with its windows, and perhaps a door and a rose window in the middle."""
    metre = PIXELS_PER_METRE
    across, down = max(8, int(width * metre)), max(8, int(height * metre))
    image = _wall(style, across, down, rng)
    draw = ImageDraw.Draw(image)
    bays, storeys = max(1, round(width / style.bay)), max(1, round(height / style.storey))
    bay, storey = across / bays, down / storeys
    trim, shade = _colour(style.trim), _colour(style.wall, 0.45)

    def opening(shape: str, x: float, y: float, w: float, h: float, glass: tuple[int, ...]) -> None:
        border = 0.14 * w + 1
        draw.polygon(_outline(shape, x - w / 2 - border, y - border, x + w / 2 + border, y + h + border), trim)
        draw.polygon(_outline(shape, x - w / 2, y, x + w / 2, y + h), shade)
        draw.polygon(_outline(shape, x - w / 2 + 1, y + 2, x + w / 2, y + h), glass)
        draw.line([(x, y), (x, y + h)], trim)

    for floor in range(storeys):
        shape = style.windows[0 if floor == storeys - 1 else 1]
        y = floor * storey + storey * (1 - style.height) * 0.55
        for column in range(bays):
            glass = _colour(np.array([52, 62, 78]), rng.uniform(0.5, 1.6))
            w, h = style.breadth * bay, style.height * storey
            opening(shape, (column + 0.5) * bay, y, w, w if shape == "round" else h, glass)
        if floor % style.band == 0:
            draw.rectangle([0, floor * storey, across, floor * storey + 0.3 * metre], trim)
    if rose:
        side = min(0.5 * across, 0.45 * down)
        x, y = across / 2, down * 0.3 - side / 2
        opening("round", x, y, side, side, (58, 52, 84))
        for angle in np.linspace(0, np.pi, rng.integers(3, 8), endpoint=False):
            step = np.array([np.cos(angle), np.sin(angle)]) * side / 2
            centre = np.array([x, y + side / 2])
            draw.line([tuple(centre - step), tuple(centre + step)], trim, 2)
    if door:
        w, h = min(3.2 * metre, 0.4 * across), min(5 * metre, 0.5 * down)
        opening(style.windows[0].replace("round", "arch"), across / 2, down - h, w, h, (66, 44, 30))
    draw.rectangle([0, down - 0.8 * metre, across, down], _colour(style.wall, 0.6)) if not door else None
    return Texture(image)


def _tiles(colour: np.ndarray) -> Texture:
    """One square metre of roof."""
    image = Image.new("RGB", (16, 16), _colour(colour))
    draw = ImageDraw.Draw(image)
    for y in (0, 8):
        draw.line([(0, y), (16, y)], _colour(colour, 0.6))
        draw.line([(y, y), (y, y + 8)], _colour(colour, 0.75))
    return Texture(image)


def _plain(colour: np.ndarray) -> Texture:
    return Texture(Image.new("RGB", (1, 1), _colour(colour)))


def _top(kind: str, radius: float, base: float) -> list[tuple[float, float]]:
    """The profile of what a tower or drum of that radius carries."""
    if kind == "dome":
        shape = [(np.cos(a), np.sin(a)) for a in np.linspace(0, 1.54, 6)]
    else:
        shape = {
            "spire": [(1.1, 0), (0.02, 4)],
            "pyramid": [(1.2, 0), (0.02, 1.4)],
            "onion": [(0.9, 0), (1.25, 0.4), (1.3, 0.8), (1.0, 1.3), (0.5, 1.8), (0.15, 2.3), (0.02, 3)],
            "lantern": [(1.1, 0), (0.6, 0.5), (0.6, 1.6), (0.75, 1.6), (0.02, 2.6)],
            "flat": [(1.0, 0), (1.2, 0.3), (1.2, 0.9)],
        }[kind]
    return [(radius * r, base + radius * z) for r, z in shape]


def building(family: np.random.Generator, own: np.random.Generator, member: int) -> list[Face]:
    """The faces of a building on the ground around the origin, its front towards -y.

    `family` draws what its members share, `own` what is this one's; `member` counts within the family, so that no two
    neighbours have the same towers, roof, windows and masonry.
    """
    wall = family.uniform(0.5, 1) * np.array([235, 220, 200]) * family.uniform(0.8, 1.1, 3)
    trim = np.array([225, 220, 210]) * family.uniform(0.6, 1.1) * family.uniform(0.9, 1.05, 3)
    roof = np.array([[140, 70, 50], [80, 90, 100], [90, 125, 110], [105, 85, 65], [190, 160, 90]])[family.integers(5)]
    wide, deep, tall = family.uniform(12, 26), family.uniform(9, 18), family.uniform(8, 16)
    round_towers, slender = family.random() < 0.5, family.uniform(0.09, 0.2)

    def mine(options):
        """This member's out of the family's own order of the options."""
        return [options[i] for i in family.permutation(len(options))][member % len(options)]

    placing, top, roofing, masonry = mine(list(TOWERS)), mine(TOPS), mine(ROOFS), mine(MASONRY)
    windows = mine([(a, b) for a in WINDOWS for b in WINDOWS])
    wide, deep, tall = np.array([wide, deep, tall]) * own.uniform(0.85, 1.15, 3)
    style = Style(
        wall, trim, roof, masonry, windows, own.uniform(2.2, 4.5), own.uniform(3, 5.5), own.uniform(0.3, 0.6),
        own.uniform(0.45, 0.75), own.integers(1, 4),
    )  # fmt: skip
    tiles, plain, edge = _tiles(roof), _plain(wall), _plain(trim)
    front = facade(style, wide, tall, own, door=True, rose=own.random() < 0.4)
    side = facade(style, deep, tall, own)
    x, y = -wide / 2, -deep / 2
    faces = box((x, y, 0), (wide, deep, tall), front, side, tiles)
    faces += box((x - 0.4, y - 0.4, tall), (wide + 0.8, deep + 0.8, 0.6), edge, edge, tiles)
    rise = tall + 0.6
    tiled = lambda roof: [face._replace(tiles=(8.0, 8.0)) if face.texture is tiles else face for face in roof]
    if roofing in ("gable", "cross"):
        faces += tiled(gable((x, y, rise), (wide, deep, own.uniform(3, 7)), plain, tiles, along_x=roofing == "cross"))
    elif roofing == "hip":
        top_z = rise + own.uniform(3, 6)
        low, w, d = np.array([x, y, rise]), np.array([wide, 0, 0]), np.array([0, deep, 0])
        ridge = np.array([0, 0, top_z - rise])
        short = deep / wide if wide > deep else 1.0
        faces += tiled([
            Face(low, w, ridge + d / 2, tiles, short),
            Face(low + w, d, ridge - w * short / 2, tiles, 1.0),
            Face(low + w + d, -w, ridge - d / 2, tiles, short),
            Face(low + d, -d, ridge + w * short / 2, tiles, 1.0),
        ])  # fmt: skip
    elif roofing == "dome":
        radius = 0.38 * min(wide, deep)
        drum = facade(style, radius * 0.8, own.uniform(2, 4), own)
        base = rise + own.uniform(2, 4)
        faces += revolve((0, 0), [(radius, rise), (radius, base)], 14, drum)
        faces += revolve((0, 0), _top(("dome", "onion", "lantern")[own.integers(3)], radius, base), 14, tiles)
    radius = slender * wide * own.uniform(0.8, 1.2)
    for index, (right, back) in enumerate(TOWERS[placing]):
        if index % 2 == 0:  # pairs are equal, except where the left one outgrows the right
            peak = tall * own.uniform(1.2, 2.1)
        elif own.random() < 0.3:
            peak *= own.uniform(0.6, 0.85)
        centre = (right * wide / 2, back * deep / 2)
        sides, turn = (10, 0.0) if round_towers else (4, np.pi / 4)
        across = 2 * radius * np.sin(np.pi / sides)
        skin = facade(style._replace(bay=max(style.bay, across / 2)), across, peak, own)
        faces += revolve(centre, [(radius, 0), (radius, peak)], sides, skin, turn)
        faces += revolve(centre, [(radius * 1.12, peak), (radius * 1.12, peak + 0.5)], sides, edge, turn)
        faces += revolve(centre, _top(top, radius, peak + 0.5), sides, tiles, turn)
    if own.random() < 0.5:  # a portico
        columns, breadth, height = own.integers(3, 8), wide * own.uniform(0.3, 0.7), tall * own.uniform(0.45, 0.8)
        for x in np.linspace(-breadth / 2, breadth / 2, columns):
            faces += revolve((x, y - 3), [(0.45, 0), (0.38, height)], 6, edge)
        corner, size = (-breadth / 2 - 0.7, y - 3.7), (breadth + 1.4, 3.7)
        faces += box((*corner, height), (*size, 0.9), edge, edge, tiles)
        faces += gable((*corner, height + 0.9), (*size, breadth * 0.2), plain, tiles, along_x=False)
    if own.random() < 0.5:  # a wing
        size = wide * own.uniform(0.3, 0.7), deep * own.uniform(0.5, 0.9), tall * own.uniform(0.4, 0.8)
        corner = (wide / 2 if own.random() < 0.5 else -wide / 2 - size[0], y + own.uniform(0, 0.3) * deep, 0)
        wing = style._replace(storey=size[2] / max(1, round(size[2] / style.storey)))
        faces += box(corner, size, facade(wing, *size[::2], own), facade(wing, *size[1:], own), tiles)
        if own.random() < 0.7:
            faces += tiled(gable((*corner[:2], size[2]), (*size[:2], 3.0), plain, tiles, along_x=True))
    return faces


class Stock(NamedTuple):
    """What stands about in every picture, the same for a whole sample."""

    trees: list[Texture]
    people: list[Texture]
    facades: list[Texture]
    grounds: list[Texture]


@lru_cache(1)
def _stock(seed: int) -> Stock:
    rng = np.random.default_rng([seed, 1])
    greens = np.array([[70, 105, 45], [95, 120, 60], [50, 80, 55], [150, 120, 50], [110, 95, 70]])
    trees = [_foliage(greens[i % 5], slim=i % 3 == 0, rng=rng) for i in range(8)]
    people = [_person(rng) for _ in range(8)]
    facades = []
    for _ in range(8):
        colour = rng.uniform(0.4, 1) * np.array([230, 215, 195]) * rng.uniform(0.8, 1.1, 3)
        masonry, window = rng.choice(["brick", "plaster", "ashlar"]), rng.choice(["rectangle", "arch"])
        sizes = rng.uniform(2, 4), rng.uniform(2.8, 3.6), rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.7), rng.integers(1, 9)
        style = Style(colour, colour * 0.8, colour * 0.5, masonry, (window, window), *sizes)
        facades.append(facade(style, 14, 14, rng))
    grounds = []
    for colour in ([125, 120, 110], [80, 80, 82], [85, 110, 55], [150, 135, 110], [235, 238, 242]):
        grain = rng.normal(1, 0.06, (64, 64, 1)) * colour
        if len(grounds) % 3 == 0:  # paved
            grain[::16] *= 0.8
            grain[:, ::16] *= 0.8
        grounds.append(Texture(Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8))))
    return Stock(trees, people, facades, grounds)


def _foliage(colour: np.ndarray, slim: bool, rng: np.random.Generator) -> Texture:
    image = Image.new("RGBA", (192, 256), (*_colour(colour), 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle([90, 140, 102, 256], (72, 56, 42, 255))
    for _ in range(600):
        height = rng.uniform(0, 1)
        reach = 80 * (1 - height) + 8 if slim else 88 * np.sqrt(1 - (2 * height - 1) ** 2)
        x, y, size = 96 + rng.uniform(-1, 1) * reach, 196 - 188 * height, rng.uniform(2, 11)
        draw.ellipse([x - size, y - size, x + size, y + size], (*_colour(colour, rng.uniform(0.45, 1.35)), 255))
    return Texture(image)


def _person(rng: np.random.Generator) -> Texture:
    coat, legs = (tuple(int(c) for c in rng.integers(20, 230, 3)) for _ in range(2))
    skin = _colour(np.array([235, 190, 160]), rng.uniform(0.4, 1.05))
    image = Image.new("RGBA", (32, 96), (*coat, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle([10, 52, 15, 96], (*legs, 255))
    draw.rectangle([17, 52, 22, 96], (*legs, 255))
    draw.polygon([(8, 18), (24, 18), (28, 56), (4, 56)], (*coat, 255))
    draw.ellipse([10, 2, 22, 18], (*skin, 255))
    return Texture(image)


def _billboard(texture: Texture, place: np.ndarray, width: float, height: float, camera: Camera) -> Face:
    """An upright picture turned to the camera."""
    aside = camera.rotation[0] * [1, 1, 0]
    right = aside / np.linalg.norm(aside) * width
    return Face(np.array([*place[:2], 0.0]) - right / 2, right, np.array([0, 0, height]), texture)


def _tree(place: np.ndarray, camera: Camera, stock: Stock, rng: np.random.Generator) -> Face:
    height = rng.uniform(4, 13)
    return _billboard(stock.trees[rng.integers(8)], place, height * rng.uniform(0.55, 0.9), height, camera)


def _vehicle(place: np.ndarray, rng: np.random.Generator) -> list[Face]:
    """A car, a van or a bus, along x or y."""
    paint, glass = _plain(rng.integers(20, 240, 3)), _plain(np.array([45, 52, 60]))
    length, height = ((4.2, 0.9), (5.5, 2.3), (11.0, 3.0))[rng.choice(3, p=[0.6, 0.25, 0.15])]
    size = (length, 1.9) if rng.random() < 0.5 else (1.9, length)
    x, y = place[:2] - np.array(size) / 2
    faces = box((x, y, 0.0), (*size, 0.35), glass, glass, glass) + box((x, y, 0.35), (*size, height), paint, paint, paint)
    inset = np.array(size) * 0.15
    cabin = (*(np.array(size) - 2 * inset), 0.7)
    return faces + box((x + inset[0], y + inset[1], height + 0.35), cabin, glass, glass, paint)


def _around(camera: Camera, forward: float, aside: float) -> np.ndarray:
    """The place on the ground that many metres ahead, at `aside` half frame widths from the middle."""
    ahead, right = (camera.rotation[axis] * [1, 1, 0] for axis in (2, 0))
    half = camera.size[0] / 2 / camera.intrinsics[0, 0]
    return (camera.centre + forward * (ahead / np.linalg.norm(ahead) + aside * half * right)) * [1, 1, 0]


def clutter(
    camera: Camera, seen: np.ndarray, stock: Stock, rng: np.random.Generator, amount: float, most_hidden: float
) -> list[Face]:
    """A street behind the points `seen` (N, 3), and things in front that hide at most that part of their rectangle."""
    points, depths = project(seen, camera)
    near, far = max(4.0, depths.min()), max(8.0, depths.max())
    faces = []
    for _ in range(rng.poisson(3)):
        place, texture = _around(camera, far * rng.uniform(1.2, 3), rng.uniform(-1.2, 1.2)), stock.facades[rng.integers(8)]
        size = rng.uniform(10, 28, 3) * [1, 1, 0.8]
        faces += box((*(place[:2] - size[:2] / 2), 0.0), size, texture, texture, stock.grounds[1])
    for _ in range(rng.poisson(3)):
        place = _around(camera, far * rng.uniform(1.05, 2), rng.uniform(-1.1, 1.1))
        faces.append(_tree(place, camera, stock, rng))

    cells = np.stack(np.meshgrid(*(np.arange(4, side, 8) for side in camera.size)), axis=2)
    covered = lambda points: ((cells > points.min(axis=0)) & (cells < points.max(axis=0))).all(axis=2)
    target = covered(points) if depths.min() > 0 else np.ones(cells.shape[:2], bool)
    free = target.copy()
    for kind in rng.choice(4, rng.poisson(amount), p=[0.4, 0.3, 0.15, 0.15]):
        place = _around(camera, max(4.0, near * rng.uniform(0.25, 0.95)), rng.uniform(-1.1, 1.1))
        if kind == 0:
            thing = [_tree(place, camera, stock, rng)]
        elif kind == 1:
            thing = [_billboard(stock.people[rng.integers(8)], place, 0.6, rng.uniform(1.5, 1.9), camera)]
        elif kind == 2:
            thing = _vehicle(place, rng)
        else:
            thing = revolve(tuple(place[:2]), [(0.12, 0), (0.09, 7)], 5, _plain(np.array([60, 62, 64])))
        points, depths = project(corners(thing).reshape(-1, 3), camera)
        left_free = free & ~covered(points)
        if depths.min() > 1 and left_free.sum() >= (1 - most_hidden) * target.sum():
            free = left_free
            faces += thing
    return faces


class Weather(NamedTuple):
    zenith: tuple[int, int, int]
    horizon: tuple[int, int, int]
    ambient: float  # the part of the light that does not come from the sun
    tint: tuple[float, float, float]
    fog: float  # greatest density, 1/metres
    drops: int = 0  # most streaks of rain or flakes of snow


WEATHER = {
    "clear": Weather((70, 120, 205), (190, 215, 240), 0.45, (1.06, 1.0, 0.93), 0.001),
    "bright": Weather((110, 150, 215), (215, 225, 235), 0.6, (1.0, 1.0, 1.0), 0.003),
    "overcast": Weather((165, 170, 178), (205, 207, 210), 0.85, (0.92, 0.98, 1.05), 0.006),
    "fog": Weather((190, 192, 195), (200, 202, 205), 0.9, (0.95, 0.97, 1.0), 0.03),
    "rain": Weather((112, 120, 130), (150, 156, 162), 0.85, (0.72, 0.78, 0.84), 0.012, 160),
    "snow": Weather((180, 184, 190), (215, 218, 222), 0.85, (0.9, 0.96, 1.05), 0.015, 220),
    "dusk": Weather((70, 68, 120), (245, 160, 100), 0.4, (1.1, 0.78, 0.6), 0.004),
    "night": Weather((14, 16, 34), (48, 46, 66), 0.6, (0.6, 0.62, 0.8), 0.004),
}


def photograph(faces: list[Face], camera: Camera, stock: Stock, rng: np.random.Generator) -> Image.Image:
    """One photo, with the weather, light and camera of the moment drawn from `rng`."""
    name = rng.choice(list(WEATHER), p=[0.28, 0.26, 0.2, 0.05, 0.06, 0.04, 0.07, 0.04])
    weather = WEATHER[name]
    angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.35) if name == "dusk" else rng.uniform(0.3, 1.2)
    sun = np.array([np.cos(angle) * np.cos(height), np.sin(angle) * np.cos(height), np.sin(height)])
    texture = stock.grounds[4 if name == "snow" else rng.integers(4)]
    corner = np.array([*camera.centre[:2] // 4 * 4, 0.0]) - [600, 600, 0]
    ground = Face(corner, np.array([1200.0, 0, 0]), np.array([0, 1200.0, 0]), texture, tiles=(300.0, 300.0))
    pixels, inverse_depth = render(ground, faces, camera, sun, weather.ambient)
    pixels = pixels[..., :3] + (1 - pixels[..., 3:] / 255) * _sky(camera, weather, rng)
    clear = np.exp(-weather.fog * rng.random() / np.maximum(inverse_depth, 1 / 150))[..., None]
    pixels = pixels * clear + (1 - clear) * np.array(weather.horizon, np.float32)
    gains = weather.tint * rng.uniform(0.93, 1.08, 3) * rng.uniform(0.85, 1.2)
    pixels *= gains.astype(np.float32)
    if rng.random() < 0.06:
        pixels[:] = pixels.mean(axis=2, keepdims=True)  # an old photo
    pixels = 255 * (np.clip(pixels, 0, 255) / 255) ** rng.uniform(0.8, 1.2)
    noise = rng.standard_normal((64, 97, 3), np.float32) * np.float32(rng.uniform(1, 7))
    pixels += np.resize(noise, pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, 320, (rng.integers(weather.drops + 1), 2)):
        if name == "snow":
            draw.ellipse([x, y, x + 2, y + 2], (240, 242, 245))
        else:
            draw.line([x, y, x + 2, y + 9], (170, 175, 182))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.1)))


def _sky(camera: Camera, weather: Weather, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float32: the colour grows from horizon to zenith, behind clouds and perhaps hills."""
    width, height = camera.size
    horizon, zenith = np.array([weather.horizon, weather.zenith], np.float32)
    upward = (camera.rotation.T @ np.linalg.inv(camera.intrinsics))[2].astype(np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    rise = upward[0] * x + (upward[1] * y + upward[2])
    sky = horizon + np.clip(rise * 1.6, 0, 1)[..., None] * (zenith - horizon)
    clouds = Image.fromarray(rng.integers(0, 256, (7, 5), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    cover = np.clip(np.asarray(clouds) / np.float32(128) - np.float32(rng.uniform(0.5, 1.8)), 0, 0.8)[..., None]
    sky += cover * (horizon * 0.4 + 140 * weather.tint[1] - sky)
    if rng.random() < 0.4:
        waves = np.linspace(0, rng.uniform(2, 9), width)
        hills = rng.uniform(0.02, 0.12) * (1 + 0.6 * np.sin(waves + rng.uniform(0, 6)) + 0.2 * np.sin(3.1 * waves))
        sky[rise < hills] = horizon * 0.55 + np.array([20, 40, 25]) * weather.tint[1]
    return sky


def viewpoint(faces: list[Face], rng: np.random.Generator) -> Camera:
    """A camera that sees the building from within 75 degrees of its front, near or far, whole or in part."""
    points = corners(faces).reshape(-1, 3)
    extent = np.ptp(points, axis=0).max()
    long, short = 320, rng.choice([240, 213, 180, 256])
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


@lru_cache(4)
def landmark_building(seed: int, landmark: int) -> list[Face]:
    """The faces of the sample's landmark number `landmark`, counted from 0."""
    family, member = divmod(landmark, FAMILY_SIZE)
    return building(np.random.default_rng([seed, 2, family]), np.random.default_rng([seed, 3, landmark]), member)


def landmark_view(seed: int, landmark: int, view: int) -> tuple[Image.Image, Camera]:
    """A landmark's photo and the true camera it was taken with: see `scene.project`."""
    rng = np.random.default_rng([seed, 4, landmark, view])
    faces, stock = landmark_building(seed, landmark), _stock(seed)
    return _view(faces, stock, rng)


def _view(faces: list[Face], stock: Stock, rng: np.random.Generator) -> tuple[Image.Image, Camera]:
    camera = viewpoint(faces, rng)
    points = corners(faces).reshape(-1, 3)
    things = clutter(camera, points, stock, rng, amount=rng.uniform(0, 10), most_hidden=rng.uniform(0, 0.5))
    return photograph(faces + things, camera, stock, rng), camera


def other_view(seed: int, view: int) -> Image.Image:
    """A picture of no landmark: a building seen once, a landscape, a street or a still life."""
    rng, stock = np.random.default_rng([seed, 5, view]), _stock(seed)
    if view % 2 == 0:
        return _view(building(np.random.default_rng([seed, 6, view]), rng, 0), stock, rng)[0]
    size = (320, int(rng.choice([240, 213, 180])))
    camera = look(np.array([0, 0, rng.uniform(1.5, 6)]), np.array([0, 60, rng.uniform(1, 9)]), rng.uniform(240, 500), size)
    if view % 4 == 1:
        camera = camera._replace(centre=np.array([0, 0, 1.5]))
        faces = []
        for _ in range(rng.integers(2, 8)):
            x, y, _ = _around(camera, rng.uniform(3, 7), rng.uniform(-0.8, 0.8))
            paint, radius, height = _plain(rng.integers(30, 240, 3)), rng.uniform(0.2, 0.8), rng.uniform(0.4, 2)
            if rng.random() < 0.5:
                profile = [(radius * r, height * z) for r, z in zip(rng.uniform(0.3, 1, 6), np.linspace(0, 1, 6), strict=True)]
                faces += revolve((x, y), profile, 16, paint)
            else:
                skin = stock.facades[rng.integers(8)] if rng.random() < 0.3 else paint
                faces += box((x - radius, y, 0.0), (2 * radius, radius, height), skin, paint, paint)
        return photograph(faces, camera, stock, rng)
    far = np.array([_around(camera, 40, 0)])
    return photograph(clutter(camera, far, stock, rng, rng.uniform(5, 30), most_hidden=1), camera, stock, rng)
