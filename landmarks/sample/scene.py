"""A small software renderer.

Everything is made of textured parallelograms seen by a pinhole camera, with a depth buffer. The world is in metres, z
up. `project` is the true camera: the corners of a face, projected into two views, give the exact homography between
the two photos of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Vector = Sequence[float] | np.ndarray
NEAR = 0.3  # metres: a face that comes nearer, or passes behind the camera, is looked for in the whole frame


class Camera(NamedTuple):
    intrinsics: np.ndarray  # (3, 3): camera coordinates (x right, y down, z forward) to pixels
    rotation: np.ndarray  # (3, 3): world to camera axes
    centre: np.ndarray  # (3,) metres
    size: tuple[int, int]  # width, height in pixels


class Texture:
    """An RGB or RGBA image (H, W, 3 or 4) uint8 with all its halvings; parts with alpha below 128 are holes."""

    def __init__(self, image: Image.Image):
        levels = [image.convert("RGBA")]
        while min(levels[-1].size) > 1:
            levels.append(levels[-1].reduce(2))
        self.widths = np.array([level.width for level in levels], np.float32)
        self.heights = np.array([level.height for level in levels], np.float32)
        self.starts = np.cumsum([0, *(level.width * level.height for level in levels[:-1])])
        self.texels = np.concatenate([np.asarray(level).view("<u4").ravel() for level in levels])
        self.opaque = np.asarray(levels[0])[..., 3].min() > 127

    def sample(self, u: np.ndarray, v: np.ndarray, level: np.ndarray) -> np.ndarray:
        """The nearest texels (N,) at u (rightwards) and v (upwards), repeating with period 1; RGBA packed as uint32."""
        level = np.clip(level, 0, len(self.widths) - 1).astype(np.intp)
        width, height = self.widths[level], self.heights[level]
        column = ((u - np.floor(u)) * width).astype(np.intp)
        row = ((np.ceil(v) - v) * height).astype(np.intp)
        np.minimum(row, height.astype(np.intp) - 1, out=row)
        np.minimum(column, width.astype(np.intp) - 1, out=column)
        return self.texels[self.starts[level] + row * width.astype(np.intp) + column]


class Face(NamedTuple):
    """The parallelogram origin + u right + v up (u, v in 0..1), seen from the side that right x up points to."""

    origin: np.ndarray  # (3,) metres, as right and up
    right: np.ndarray
    up: np.ndarray
    texture: Texture
    taper: float = 0.0  # how much shorter the upper edge is, as a part of the lower: 1 makes a triangle
    tiles: tuple[float, float] = (1.0, 1.0)  # how often the texture repeats along right and up


def corners(faces: list[Face]) -> np.ndarray:
    """(N, 4, 3) metres: lower left, lower right, upper right, upper left of each face."""
    origin, right, up = (np.array([face[part] for face in faces]) for part in range(3))
    inset = right * np.array([[face.taper / 2] for face in faces])
    return np.stack([origin, origin + right, origin + up + right - inset, origin + up + inset], axis=1)


def look(centre: np.ndarray, target: np.ndarray, focal: float, size: tuple[int, int], roll: float = 0.0) -> Camera:
    """A camera at `centre` that sees `target` in the middle; `focal` in pixels, `roll` in radians."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    rotation = np.array([cos * right + sin * down, cos * down - sin * right, forward])
    intrinsics = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1.0]])
    return Camera(intrinsics, rotation, centre, size)


def project(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """World points (N, 3) to pixels (N, 2), x then y from the frame's upper left corner, and depths (N,) in metres.

    Pixel (column, row) covers x from column to column + 1. Points of depth <= 0 lie behind the camera.
    """
    seen = (points - camera.centre) @ (camera.intrinsics @ camera.rotation).T
    return seen[:, :2] / seen[:, 2:], seen[:, 2]


def render(
    ground: Face, faces: list[Face], camera: Camera, sun: np.ndarray, ambient: float, samples: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `faces` on `ground`, which takes their shadows, with samples x samples rays a pixel.

    `sun` is the unit vector towards the light; `ambient` the part of the light that comes from everywhere.
    Returns premultiplied RGBA (H, W, 4) in 0..255 and inverse depths (H, W) in 1/metres; both are 0 where nothing is.
    """
    wanted, scale = camera.size, np.diag([samples, samples, 1.0])
    size = round(camera.size[0] * samples), round(camera.size[1] * samples)
    camera = camera._replace(intrinsics=scale @ camera.intrinsics, size=size)
    focal = camera.intrinsics[0, 0]
    frame = np.zeros(size[::-1], "<u4")
    light, inverse_depth = np.zeros((2, *size[::-1]), np.float32)

    faces = [*faces, ground]
    outlines = corners(faces)
    origin, right, up = (np.array([face[part] for face in faces]) for part in range(3))
    normals = np.cross(right, up)
    shades = ambient + (1 - ambient) * np.maximum(0, normals @ sun / np.linalg.norm(normals, axis=1))
    towards = camera.centre - outlines.mean(axis=1)
    points, depths = (seen.reshape(len(faces), 4, -1) for seen in project(outlines.reshape(-1, 3), camera))
    within = depths.min(axis=(1, 2)) > NEAR
    low = np.where(within[:, None], np.clip(np.floor(points.min(axis=1)), 0, size), 0).astype(int)
    high = np.where(within[:, None], np.clip(np.ceil(points.max(axis=1)), 0, size), size).astype(int)
    seen = ((towards * normals).sum(axis=1) > 0) & (low < high).all(axis=1) & (depths.max(axis=(1, 2)) > NEAR)
    # A pixel (x, y, 1) is depth * plane @ (u, v, 1): so the inverse gives (u, v, 1) / depth.
    planes = camera.intrinsics @ camera.rotation @ np.stack([right, up, origin - camera.centre], axis=2)
    order = np.argsort(np.linalg.norm(towards[:-1], axis=1))  # near ones first: what they hide is not textured in vain
    for i in order[seen[order]]:
        _draw(faces[i], np.linalg.inv(planes[i]), low[i], high[i], shades[i], focal, frame, light, inverse_depth)
    bare = inverse_depth == 0
    _draw(ground, np.linalg.inv(planes[-1]), low[-1], high[-1], shades[-1], focal, frame, light, inverse_depth)
    casters = [face is not ground and face.texture.opaque for face in faces]
    light[bare & _shadows(outlines[casters], camera, sun)] *= ambient

    # Not BOX: where samples is no whole number, it shifts the picture by a part of a pixel.
    layers = Image.frombuffer("RGBX", size, frame), Image.fromarray(light), Image.fromarray(inverse_depth)
    pixels, light, inverse_depth = (np.asarray(layer.resize(wanted, Image.Resampling.BILINEAR)) for layer in layers)
    covered = np.maximum(pixels[..., 3], 1) / np.float32(255)
    pixels = pixels.astype(np.float32)
    pixels[..., :3] *= (light / covered)[..., None]
    return pixels, inverse_depth / covered


def _draw(
    face: Face,
    to_face: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    shade: float,
    focal: float,
    frame: np.ndarray,
    light: np.ndarray,
    inverse_depth: np.ndarray,
) -> None:
    window = np.s_[low[1] : high[1], low[0] : high[0]]
    x = np.arange(low[0], high[0], dtype=np.float32) + 0.5
    y = np.arange(low[1], high[1], dtype=np.float32)[:, None] + 0.5
    u, v, near = (row[0] * x + (row[1] * y + row[2]) for row in to_face.astype(np.float32))
    inside = (near > inverse_depth[window]) & (v >= 0) & (v <= near)
    inside &= np.abs(2 * u - near) <= near - np.float32(face.taper) * v
    near = near[inside]
    u, v = u[inside] / near * np.float32(face.tiles[0]), v[inside] / near * np.float32(face.tiles[1])
    # The texels under one pixel's side, geometric mean over both directions, at distance 1.
    texels = face.texture.widths[0] * face.tiles[0] * face.texture.heights[0] * face.tiles[1]
    texels = np.sqrt(texels / np.linalg.norm(face.right) / np.linalg.norm(face.up)) / focal
    colours = face.texture.sample(u, v, np.log2(np.float32(texels) / near) + 0.5)
    if not face.texture.opaque:
        solid = colours >= 128 << 24
        inside[inside] = solid
        colours, near = colours[solid], near[solid]
    frame[window][inside] = colours | 255 << 24
    light[window][inside] = shade
    inverse_depth[window][inside] = near


def _shadows(outlines: np.ndarray, camera: Camera, sun: np.ndarray) -> np.ndarray:
    """Where (H, W) bool the ground plane z = 0 lies in the shadow of quadrilaterals (N, 4, 3)."""
    shadow = Image.new("1", camera.size)
    draw = ImageDraw.Draw(shadow)
    points, depths = project((outlines - outlines[..., 2:] / sun[2] * sun).reshape(-1, 3), camera)
    for outline, seen in zip(points.reshape(-1, 8), depths.reshape(-1, 4).min(axis=1) > NEAR, strict=True):
        if seen:
            draw.polygon(outline.tolist(), fill=1)
    return np.asarray(shadow)


def box(corner: Vector, size: Vector, front: Texture, side: Texture, top: Texture) -> list[Face]:
    """Front (towards -y), right, back, left, top and bottom of a box; `corner` has its least x, y and z."""
    low, (x, y, z) = np.array(corner, float), np.diag(np.array(size, float))
    return [
        Face(low, x, z, front),
        Face(low + x, y, z, side),
        Face(low + x + y, -x, z, front),
        Face(low + y, -y, z, side),
        Face(low + z, x, y, top),
        Face(low + y, x, -y, top),
    ]


def gable(corner: Vector, size: Vector, end: Texture, slope: Texture, along_x: bool) -> list[Face]:
    """A ridged roof on a box of that corner and width and depth, the ridge along x or y."""
    low, (x, y, z) = np.array(corner, float), np.diag(np.array(size, float))
    if along_x:
        low, x, y = low + x, y, -x  # a quarter turn
    return [
        Face(low, x, z, end, taper=1.0),
        Face(low + x + y, -x, z, end, taper=1.0),
        Face(low + x, y, z - x / 2, slope),
        Face(low + y, -y, z + x / 2, slope),
    ]


def revolve(
    centre: Vector, profile: list[tuple[float, float]], sides: int, texture: Texture, turn: float = 0.0
) -> list[Face]:
    """Rings of `sides` faces through the (radius > 0, height) pairs of `profile`: cylinders, cones, domes, pyramids."""
    angles = turn + 2 * np.pi * np.arange(sides + 1) / sides
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros(sides + 1)], axis=1)
    middle = np.array([*centre, 0.0])
    faces = []
    for (radius, low), (next_radius, high) in zip(profile, profile[1:], strict=False):
        for start, end in zip(circle, circle[1:], strict=False):
            right = radius * (end - start)
            up = (next_radius - radius) * (start + end) / 2 + [0, 0, high - low]
            faces.append(Face(middle + radius * start + [0, 0, low], right, up, texture, 1 - next_radius / radius))
    return faces


def rgb(colour: Vector, gain: float = 1.0) -> tuple[int, ...]:
    """A colour 0..255, made brighter or darker, as Pillow takes it."""
    return tuple(int(value) for value in np.clip(np.asarray(colour) * gain, 0, 255))


def plain(colour: Vector) -> Texture:
    return Texture(Image.new("RGB", (1, 1), rgb(colour)))
