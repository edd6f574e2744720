"""Two photo files: how many inliers they have, and the picture of these."""

from pathlib import Path

import numpy as np

from landmarks.local_features.extractors import open_extractor
from landmarks.local_features.matching import MATCHING, inliers
from landmarks.local_features.points import SMALLEST_SIDE, decode
from landmarks.mirrors.images import UnreadablePhoto
from landmarks.mirrors.shards import read_photo
from landmarks.running.command import InputError
from landmarks.running.files import whole


def match(
    a: Path, b: Path, out: Path | None, extractor: str | None, model: Path | None, size: int, points: int
) -> None:
    """Print how many inliers two photos have, and draw them if asked to; the arguments are those of the command."""
    if size < SMALLEST_SIDE or points < 2:
        raise InputError(f"--size {size} --points {points}: give at least {SMALLEST_SIDE} pixels and 2 points")
    extractor = extractor or ("delf" if model else "untrained")
    extract = open_extractor(extractor, model, points)
    one, other = _read_photo(a, size), _read_photo(b, size)
    of_one, of_other = extract([one, other])
    rows = inliers(of_one, of_other, MATCHING[extractor])
    if out is not None:
        from landmarks.local_features.drawing import draw_matches  # pandas

        picture = draw_matches(one, other, of_one.points[rows[:, 0]], of_other.points[rows[:, 1]])
        try:
            with whole(out) as part:
                picture.save(part)
        except ValueError as error:  # Pillow goes by the suffix
            raise InputError(f"{out} cannot be written: {error}; give a name like matches.png") from error
    print(f"{len(rows)} inliers")


def _read_photo(path: Path, size: int) -> np.ndarray:
    try:
        photo = decode(read_photo(path), size)
    except (OSError, UnreadablePhoto) as error:
        raise InputError(f"photo {path} cannot be read: {error}") from error
    if min(photo.shape[:2]) < SMALLEST_SIDE:
        raise InputError(f"photo {path} is too small: at --size {size} no side may be under {SMALLEST_SIDE} pixels")
    return photo
