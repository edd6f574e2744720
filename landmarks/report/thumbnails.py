"""Photos and pictures, small, as they stand in a page: encoded within it, so that it asks for nothing."""

import base64
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image

from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.images import UnreadablePhoto, open_photo
from landmarks.mirrors.pictures import photos_of
from landmarks.report.galleries import shards_of
from landmarks.running.command import InputError

SIDE = 224  # pixels of a photo's longer side: 8 KB as it comes, 30 KB of noise
WIDTH = 896  # of a drawn match, which is two photos
QUALITY = 80


def thumbnails(mirror: FolderMirror | None, split: str, ids: Iterable[str], files: list[Path]) -> dict[str, str]:
    """Photos by id, each as the address of a picture within the page; what cannot be had is left out.

    Args:
        files: features files of the split, which tell what shards the photos are in.
    """
    if mirror is None:
        return {}
    found = {}
    try:
        encoded = photos_of(mirror, split, shards_of(ids, files))
    except (InputError, ValueError, OSError):
        return {}
    for identity, data in encoded.items():
        try:
            found[identity] = _address(open_photo(data, SIDE), SIDE)
        except UnreadablePhoto:
            continue
    return found


def picture(path: Path) -> str | None:
    """A picture that a run has drawn, as `thumbnails`; None if it cannot be read."""
    try:
        return _address(open_photo(path.read_bytes(), WIDTH), WIDTH)
    except (OSError, UnreadablePhoto):
        return None


def _address(photo: Image.Image, side: int) -> str:
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    photo.save(encoded, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
