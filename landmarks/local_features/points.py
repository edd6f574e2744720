"""Points with descriptors, the local features of a photo, and the photo as they are found in it."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from landmarks.mirrors.images import open_photo
from landmarks.running.command import InputError

PACKAGES = "opencv-python-headless threadpoolctl"
SCALES = (0.25, 0.3536, 0.5, 0.7071, 1.0, 1.4142, 2.0)  # of the published DELF and DELG configurations
SMALLEST_SIDE = 32  # pixels: XFeat's network cannot see less


class LocalFeatures(NamedTuple):
    """N points of one photo, the strongest first as far as the extractor tells."""

    points: np.ndarray  # (N, 2) float32: x and y in pixels of the photo that was given
    descriptors: np.ndarray  # (N, D) float32, L2-normalised


class Matching(NamedTuple):
    """How features of one extractor are matched. A transformation is "affine" or "homography"."""

    ratio: float  # a match must be nearer than the second-nearest point by this factor; 1: no ratio test
    least: float  # cosine similarity that a match must have
    pixels: float  # how far an inlier may lie from where the map puts it
    transformation: str = "affine"
    fits: int = 4  # maps that are tried, while they cannot be between two photos of one thing


Extractor = Callable[[Sequence[np.ndarray]], list[LocalFeatures]]  # of several photos, as large as they are


def decode(data: bytes, size: int) -> np.ndarray:
    """An upright photo (H, W, 3) uint8, made smaller to `size` pixels on its longer side. Raises UnreadablePhoto.

    The aspect ratio stays, as an affine map between two squashed photos would be none between the photos.
    """
    image = open_photo(data, size)
    image.thumbnail((size, size))
    return np.asarray(image)


@cache
def opencv():
    """OpenCV. Raises InputError where it, or threadpoolctl that matching needs beside it, is not installed."""
    try:
        import cv2
        import threadpoolctl  # noqa: F401
    except ImportError as error:
        raise InputError(f"local features need {PACKAGES} (not found: {error.name}): pip install {PACKAGES}") from error
    return cv2


def none_found() -> LocalFeatures:
    """The features of a photo that has none."""
    return LocalFeatures(np.empty((0, 2), np.float32), np.empty((0, 0), np.float32))
