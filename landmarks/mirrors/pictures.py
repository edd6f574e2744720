"""A photo beside others of a mirror, with a line of words under each, as one picture."""

from contextlib import suppress

from PIL import Image, ImageDraw, ImageOps

from landmarks.mirrors.base import Mirror
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.images import open_photo
from landmarks.running.command import InputError

SIDE = 224  # pixels of each photo, at most
GAP = 8  # between them
CAPTION = 20  # below
LETTERS = 32  # of a caption, which are as wide as a photo


def photos_of(mirror: Mirror, split: str, shard_of: dict[str, str]) -> dict[str, bytes]:
    """Encoded photos by id, from the shards that they are in; those that are there no more are left out.

    Raises InputError if the mirror is not in a folder, where a photo would cost a download of its shard.
    """
    if not isinstance(mirror, FolderMirror):
        raise InputError(f"{mirror.name} is no folder; only photos of one can be read at once")
    there = [name for name in mirror.shard_names(split) if name in shard_of.values()]
    found = {}
    for shard in mirror.stream(split, there):
        for identity in set(shard.ids).intersection(shard_of):
            if shard_of[identity] == shard.name:
                with suppress(OSError):  # an extracted tree may lack what its CSV lists
                    found[identity] = shard.read(identity)
    return found


def side_by_side(photos: list[tuple[bytes | None, str]]) -> Image.Image:
    """Encoded photos in a row, each with the words under it; an empty place where there is no photo.

    Raises UnreadablePhoto if one is not a photo.
    """
    picture = Image.new("RGB", (len(photos) * (SIDE + GAP) - GAP, SIDE + CAPTION), "white")
    pen = ImageDraw.Draw(picture)
    for place, (data, words) in enumerate(photos):
        left = place * (SIDE + GAP)
        if data is None:
            pen.rectangle([left, 0, left + SIDE - 1, SIDE - 1], outline="grey")
        else:
            photo = ImageOps.contain(open_photo(data, SIDE), (SIDE, SIDE))
            picture.paste(photo, (left + (SIDE - photo.width) // 2, (SIDE - photo.height) // 2))
        words = words if len(words) <= LETTERS else f"{words[: LETTERS - 3]}..."
        pen.text((left + 2, SIDE + 4), words.encode("latin-1", "replace").decode("latin-1"), "black")
    return picture
