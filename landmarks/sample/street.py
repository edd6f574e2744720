"""What surrounds a building in a photo of the sample: street, trees, people, cars, weather and light."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from landmarks.sample.scene import Camera, Face, Texture, Vector, box, corners, plain, project, render, revolve, rgb


class Stock(NamedTuple):
    """What stands about in every picture, the same for a whole sample."""

    trees: list[Texture]
    people: list[Texture]
    houses: list[Texture]
    grounds: list[Texture]  # the last is snow


def make_stock(rng: np.random.Generator) -> Stock:
    greens = np.array([[70, 105, 45], [95, 120, 60], [50, 80, 55], [150, 120, 50], [110, 95, 70]])
    grounds = []
    for number, colour in enumerate(([125, 120, 110], [80, 80, 82], [85, 110, 55], [150, 135, 110], [235, 238, 242])):
        grain = rng.normal(1, 0.06, (64, 64, 1)) * colour
        if number % 3 == 0:
            grain[::16] *= 0.8  # paving stones
            grain[:, ::16] *= 0.8
        grounds.append(Texture(Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8))))
    return Stock(
        trees=[_foliage(greens[number % 5], slim=number % 3 == 0, rng=rng) for number in range(8)],
        people=[_person(rng) for _ in range(8)],
        houses=[_house(rng) for _ in range(8)],
        grounds=grounds,
    )


def _house(rng: np.random.Generator) -> Texture:
    wall = rng.uniform(0.4, 1) * np.array([230, 215, 195]) * rng.uniform(0.8, 1.1, 3)
    image = Image.new("RGB", (128, 128), rgb(wall))
    draw = ImageDraw.Draw(image)
    (across, down), (breadth, height) = 128 / rng.integers(3, 8, 2), rng.uniform(0.3, 0.7, 2)
    for x in np.arange(across / 2, 128, across):
        for y in np.arange(down / 2, 128, down):
            w, h = breadth * across / 2, height * down / 2
            glass = rgb([58, 66, 80], rng.uniform(0.6, 1.4))
            draw.rectangle([x - w, y - h, x + w, y + h], glass, outline=rgb(wall, 0.75), width=2)
    return Texture(image)


def _foliage(colour: Vector, slim: bool, rng: np.random.Generator) -> Texture:
    image = Image.new("RGBA", (192, 256), (*rgb(colour), 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle([90, 140, 102, 256], (72, 56, 42, 255))
    for _ in range(600):
        height = rng.uniform(0, 1)
        reach = 80 * (1 - height) + 8 if slim else 88 * np.sqrt(1 - (2 * height - 1) ** 2)
        x, y, size = 96 + rng.uniform(-1, 1) * reach, 196 - 188 * height, rng.uniform(2, 11)
        draw.ellipse([x - size, y - size, x + size, y + size], (*rgb(colour, rng.uniform(0.45, 1.35)), 255))
    return Texture(image)


def _person(rng: np.random.Generator) -> Texture:
    coat, legs = (tuple(int(c) for c in rng.integers(20, 230, 3)) for _ in range(2))
    skin = rgb([235, 190, 160], rng.uniform(0.4, 1.05))
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
    paint = rng.uniform(0.2, 1) * (110 + 0.5 * rng.integers(0, 256, 3))
    image = Image.new("RGB", (64, 32), rgb(paint))
    draw = ImageDraw.Draw(image)
    for x in range(3, 60, 15):
        draw.rectangle([x, 4, x + 12, 14], (45, 52, 60))
    for x in (6, 44):
        draw.ellipse([x, 20, x + 12, 32], (25, 25, 25))
    side, top = Texture(image), plain(paint)
    length, height = ((4.2, 1.5), (5.5, 2.3), (11.0, 3.0))[rng.choice(3, p=[0.6, 0.25, 0.15])]
    size = (length, 1.9, height) if rng.random() < 0.5 else (1.9, length, height)
    return box(place - np.array(size) * [0.5, 0.5, 0], size, side, side, top)


def around(camera: Camera, forward: float, aside: float) -> np.ndarray:
    """The place on the ground that many metres ahead, at `aside` half frame widths from the middle."""
    ahead, right = (camera.rotation[axis] * [1, 1, 0] for axis in (2, 0))
    half = camera.size[0] / 2 / camera.intrinsics[0, 0]
    return (camera.centre + forward * (ahead / np.linalg.norm(ahead) + aside * half * right)) * [1, 1, 0]


def clutter(
    camera: Camera, seen: np.ndarray, stock: Stock, rng: np.random.Generator, amount: float, most_hidden: float
) -> list[Face]:
    """A street behind the points `seen` (N, 3), and up to about `amount` trees, people, cars and poles in front.

    What would hide more than `most_hidden` of the rectangle around those points is left out.
    """
    points, depths = project(seen, camera)
    near, far = max(4.0, depths.min()), max(8.0, depths.max())
    faces = []
    for _ in range(rng.poisson(3)):
        place = around(camera, far * rng.uniform(1.1, 3) + 14, rng.uniform(-1.2, 1.2))
        size, house = rng.uniform(10, 28, 3) * [1, 1, 0.8], stock.houses[rng.integers(8)]
        faces += box(place - size * [0.5, 0.5, 0], size, house, house, stock.grounds[1])
    for _ in range(rng.poisson(3)):
        place = around(camera, far * rng.uniform(1.05, 2), rng.uniform(-1.1, 1.1))
        faces.append(_tree(place, camera, stock, rng))

    cells = np.stack(np.meshgrid(*(np.arange(4, side, 8) for side in camera.size)), axis=2)

    def covered(points: np.ndarray) -> np.ndarray:
        return ((cells > points.min(axis=0)) & (cells < points.max(axis=0))).all(axis=2)

    target = covered(points) if depths.min() > 0 else np.ones(cells.shape[:2], bool)
    free = target.copy()
    for kind in rng.choice(4, rng.poisson(amount), p=[0.4, 0.3, 0.15, 0.15]):
        place = around(camera, max(4.0, near * rng.uniform(0.25, 0.95)), rng.uniform(-1.1, 1.1))
        if kind == 0:
            thing = [_tree(place, camera, stock, rng)]
        elif kind == 1:
            thing = [_billboard(stock.people[rng.integers(8)], place, 0.6, rng.uniform(1.5, 1.9), camera)]
        elif kind == 2:
            thing = _vehicle(place, rng)
        else:
            thing = revolve(place[:2], [(0.12, 0), (0.09, 7)], 5, plain([60, 62, 64]))
        points, depths = project(corners(thing).reshape(-1, 3), camera)
        left_free = free & ~covered(points)
        if depths.min() > 1 and left_free.sum() >= (1 - most_hidden) * target.sum():
            free = left_free
            faces += thing
    return faces


class Weather(NamedTuple):
    chance: float
    zenith: tuple[int, int, int]
    horizon: tuple[int, int, int]
    ambient: float  # the part of the light that does not come from the sun
    tint: tuple[float, float, float]
    fog: float  # greatest density, 1/metres
    drops: int = 0  # most streaks of rain or flakes of snow


WEATHER = {
    "clear": Weather(0.28, (70, 120, 205), (190, 215, 240), 0.45, (1.06, 1.0, 0.93), 0.001),
    "bright": Weather(0.26, (110, 150, 215), (215, 225, 235), 0.6, (1.0, 1.0, 1.0), 0.003),
    "overcast": Weather(0.2, (165, 170, 178), (205, 207, 210), 0.85, (0.92, 0.98, 1.05), 0.006),
    "fog": Weather(0.05, (190, 192, 195), (200, 202, 205), 0.9, (0.95, 0.97, 1.0), 0.03),
    "rain": Weather(0.06, (112, 120, 130), (150, 156, 162), 0.85, (0.72, 0.78, 0.84), 0.012, 160),
    "snow": Weather(0.04, (180, 184, 190), (215, 218, 222), 0.85, (0.9, 0.96, 1.05), 0.015, 220),
    "dusk": Weather(0.07, (84, 84, 130), (240, 170, 120), 0.4, (1.06, 0.86, 0.74), 0.004),
    "night": Weather(0.04, (14, 16, 34), (48, 46, 66), 0.6, (0.6, 0.62, 0.8), 0.004),
}


def photograph(faces: list[Face], camera: Camera, stock: Stock, rng: np.random.Generator) -> Image.Image:
    """One photo, with the weather, light and camera of the moment drawn from `rng`."""
    name = rng.choice(list(WEATHER), p=[weather.chance for weather in WEATHER.values()])
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
    gains = rng.uniform(0.93, 1.08, 3) * weather.tint * rng.uniform(0.85, 1.2)
    pixels *= gains.astype(np.float32)
    if rng.random() < 0.06:
        pixels[:] = pixels.mean(axis=2, keepdims=True)  # an old photo
    noise = rng.standard_normal((64, 97, 3), np.float32) * np.float32(rng.uniform(1, 7))
    pixels += np.resize(noise, pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image = image.point((255 * np.linspace(0, 1, 256) ** rng.uniform(0.8, 1.2)).astype(int).tolist() * 3)
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, 320, (rng.integers(weather.drops + 1), 2)):
        if name == "snow":
            draw.ellipse([x, y, x + 2, y + 2], (240, 242, 245))
        else:
            draw.line([x, y, x + 2, y + 9], (170, 175, 182))
    return image.filter(ImageFilter.BoxBlur(rng.uniform(0, 1.2)))


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
