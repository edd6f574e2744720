"""The buildings of the sample: textured facades, towers, domes and roofs, in families that differ in structure."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from landmarks.sample.scene import Face, Texture, Vector, box, gable, plain, revolve, rgb

PIXELS_PER_METRE = 14  # of the facades: a building that fills a 320 px frame twice over is still sharp
TOWERS: dict[str, list[tuple[float, float]]] = {  # where towers stand, in half widths and half depths of the main block
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


def _wall(style: Style, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Bare masonry of that many pixels."""
    image = Image.new("RGB", (width, height), rgb(style.wall))
    draw = ImageDraw.Draw(image)
    metre = PIXELS_PER_METRE
    if style.masonry in ("brick", "ashlar"):
        course, length = (metre * 0.4, metre * 0.8) if style.masonry == "brick" else (metre * 0.9, metre * 1.6)
        joint = rgb(style.wall, 0.72)
        for row, y in enumerate(np.arange(0, height, course)):
            draw.line([(0, y), (width, y)], joint)
            for x in np.arange(length / 2 * (row % 2), width, length):
                draw.line([(x, y), (x, y + course)], joint)
    elif style.masonry == "stripes":
        for y in np.arange(0, height, metre * 1.6):
            draw.rectangle([0, y, width, y + metre * 0.7], rgb(style.trim, 0.8))
    elif style.masonry == "chequer":
        side = metre * 1.1
        for row, y in enumerate(np.arange(0, height, side)):
            for x in np.arange(side * (row % 2), width, 2 * side):
                draw.rectangle([x, y, x + side, y + side], rgb(style.trim, 0.85))
    elif style.masonry == "timber":
        beam, pitch = rgb(style.roof, 0.55), metre * style.bay
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
    trim, shade = rgb(style.trim), rgb(style.wall, 0.45)

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
            glass = rgb(np.array([52, 62, 78]), rng.uniform(0.5, 1.6))
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
    else:
        draw.rectangle([0, down - 0.8 * metre, across, down], rgb(style.wall, 0.6))
    return Texture(image)


def _tiles(colour: np.ndarray) -> Texture:
    """Five rows of roof tiles, or of the plates of a dome."""
    image = Image.new("RGB", (80, 80), rgb(colour))
    draw = ImageDraw.Draw(image)
    for y in range(0, 80, 16):
        draw.line([(0, y), (80, y)], rgb(colour, 0.6), 2)
        for x in range(y // 2 % 16, 80, 16):
            draw.line([(x, y), (x, y + 16)], rgb(colour, 0.75))
    return Texture(image)


def _top(kind: str, radius: float, base: float) -> list[tuple[float, float]]:
    """The profile of what a tower or drum of that radius carries."""
    shapes: dict[str, list[tuple[float, float]]] = {
        "dome": [(np.cos(a), np.sin(a)) for a in np.linspace(0, 1.54, 6)],
        "spire": [(1.1, 0), (0.02, 4)],
        "pyramid": [(1.2, 0), (0.02, 1.4)],
        "onion": [(0.9, 0), (1.25, 0.4), (1.3, 0.8), (1.0, 1.3), (0.5, 1.8), (0.15, 2.3), (0.02, 3)],
        "lantern": [(1.1, 0), (0.6, 0.5), (0.6, 1.6), (0.75, 1.6), (0.02, 2.6)],
        "flat": [(1.0, 0), (1.2, 0.3), (1.2, 0.9), (0.02, 0.9)],
    }
    return [(radius * r, base + radius * z) for r, z in shapes[kind]]


def building(family: np.random.Generator, own: np.random.Generator, member: int) -> list[Face]:
    """The faces of a building on the ground around the origin, its front towards -y.

    `family` draws what its members share, `own` what is this one's; `member` counts within the family, so that no two
    members of one have the same towers, roof, windows and masonry.
    """
    wall = family.uniform(0.5, 1) * np.array([235, 220, 200]) * family.uniform(0.8, 1.1, 3)
    trim = family.uniform(0.6, 1.1) * np.array([225, 220, 210]) * family.uniform(0.9, 1.05, 3)
    roof = np.array([[140, 70, 50], [80, 90, 100], [90, 125, 110], [105, 85, 65], [190, 160, 90]])[family.integers(5)]
    size = np.array([family.uniform(12, 26), family.uniform(9, 18), family.uniform(8, 16)]) * own.uniform(0.85, 1.15, 3)
    round_towers, slender = family.random() < 0.5, family.uniform(0.09, 0.2)

    def mine(options):
        """This member's out of the family's own order of the options."""
        return options[family.permutation(len(options))[member % len(options)]]

    placing, top, roofing, masonry = mine(list(TOWERS)), mine(TOPS), mine(ROOFS), mine(MASONRY)
    windows = mine([(below, above) for below in WINDOWS for above in WINDOWS])
    bay, storey, breadth, height = own.uniform([2.2, 3.0, 0.3, 0.45], [4.5, 5.5, 0.6, 0.75])
    style = Style(wall, trim, roof, masonry, windows, bay, storey, breadth, height, int(own.integers(1, 4)))
    tiles, edge = _tiles(roof), plain(trim)

    wide, deep, tall = size
    front, side = facade(style, wide, tall, own, door=True, rose=own.random() < 0.4), facade(style, deep, tall, own)
    low = np.array([-wide / 2, -deep / 2, 0])
    faces = box(low, size, front, side, tiles)
    faces += box(low + [-0.4, -0.4, tall], size * [1, 1, 0] + [0.8, 0.8, 0.6], edge, edge, tiles)
    faces += _roof(roofing, low + [0, 0, tall + 0.6], size, style, own)
    radius = slender * wide * own.uniform(0.8, 1.2)
    for number, (right, back) in enumerate(TOWERS[placing]):
        if number % 2 == 0:  # the towers of a pair are equal, except where the left one outgrows the right
            peak = tall * own.uniform(1.2, 2.1)
        elif own.random() < 0.3:
            peak *= own.uniform(0.6, 0.85)
        faces += _tower((right * wide / 2, back * deep / 2), radius, peak, top, 10 if round_towers else 4, style, own)
    if own.random() < 0.5:
        columns, breadth, height = own.integers(3, 8), wide * own.uniform(0.3, 0.7), tall * own.uniform(0.45, 0.8)
        for x in np.linspace(-breadth / 2, breadth / 2, columns):
            faces += revolve((x, low[1] - 3), [(0.45, 0), (0.38, height)], 6, edge)
        corner = np.array([-breadth / 2 - 0.7, low[1] - 3.7, height])
        faces += box(corner, (breadth + 1.4, 3.7, 0.9), edge, edge, tiles)
        faces += gable(corner + [0, 0, 0.9], (breadth + 1.4, 3.7, breadth * 0.2), plain(wall), tiles, along_x=False)
    if own.random() < 0.5:
        wing = size * own.uniform([0.3, 0.5, 0.4], [0.7, 0.9, 0.8])
        left = wide / 2 if own.random() < 0.5 else -wide / 2 - wing[0]
        corner = np.array([left, low[1] + own.uniform(0, 0.3) * deep, 0])
        faces += box(corner, wing, facade(style, wing[0], wing[2], own), facade(style, wing[1], wing[2], own), tiles)
        if own.random() < 0.7:
            faces += gable(corner + [0, 0, wing[2]], (*wing[:2], 3.0), plain(wall), tiles, along_x=True)
    return faces


def _roof(kind: str, low: np.ndarray, size: np.ndarray, style: Style, rng: np.random.Generator) -> list[Face]:
    tiles, (wide, deep, _), rise = _tiles(style.roof), size, rng.uniform(3, 7)
    if kind in ("gable", "cross"):
        return gable(low, (wide, deep, rise), plain(style.wall), tiles, along_x=kind == "cross")
    if kind == "hip":
        x, y, z = np.diag([wide, deep, rise])
        taper = min(1.0, deep / wide)
        return [
            Face(low, x, z + y / 2, tiles, taper),
            Face(low + x, y, z - x * taper / 2, tiles, 1.0),
            Face(low + x + y, -x, z - y / 2, tiles, taper),
            Face(low + y, -y, z + x * taper / 2, tiles, 1.0),
        ]
    if kind == "dome":
        radius, base = 0.38 * min(wide, deep), low[2] + rise / 2
        drum = revolve((0, 0), [(radius, low[2]), (radius, base)], 14, facade(style, radius * 0.8, rise / 2, rng))
        return drum + revolve((0, 0), _top(("dome", "onion", "lantern")[rng.integers(3)], radius, base), 14, tiles)
    return []


def _tower(
    centre: Vector, radius: float, peak: float, top: str, sides: int, style: Style, rng: np.random.Generator
) -> list[Face]:
    turn, across = np.pi / sides, 2 * radius * np.sin(np.pi / sides)
    skin = facade(style._replace(bay=max(style.bay, across / 2)), across, peak, rng)
    cornice = [(radius, peak), (radius * 1.12, peak), (radius * 1.12, peak + 0.5)]
    faces = revolve(centre, [(radius, 0), (radius, peak)], sides, skin, turn)
    faces += revolve(centre, cornice, sides, plain(style.trim), turn)
    return faces + revolve(centre, _top(top, radius, peak + 0.5), sides, _tiles(style.roof), turn)
