"""Pictures of matches: two photos side by side, and a line for each inlier."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageColor, ImageDraw

from landmarks.local_features.kept import KeptFeatures
from landmarks.local_features.matching import inliers
from landmarks.local_features.points import Matching, decode
from landmarks.mirrors.base import Mirror
from landmarks.running.files import whole

GAP = 8  # pixels between the photos
CAPTION = 20  # pixels above them
MOST_LINES = 75  # more would hide the photos


def draw_matches(a: np.ndarray, b: np.ndarray, a_points: np.ndarray, b_points: np.ndarray) -> Image.Image:
    """Two photos, (H, W, 3) uint8 of any two sizes, with a line from each of `a_points` to its one of `b_points`.

    Points are (K, 2), x and y in pixels; of very many only every n-th pair is drawn. The colours go round the hues from
    the top of the first photo to its bottom, so that lines which cross are told apart.
    """
    shift = a.shape[1] + GAP
    picture = Image.new("RGB", (shift + b.shape[1], CAPTION + max(a.shape[0], b.shape[0])), "white")
    picture.paste(Image.fromarray(a), (0, CAPTION))
    picture.paste(Image.fromarray(b), (shift, CAPTION))
    pen = ImageDraw.Draw(picture)
    every = -(-len(a_points) // MOST_LINES)
    pen.text((4, 4), f"{len(a_points)} inliers" + f", one in {every} drawn" * (every > 1), "black")
    for place, row in list(enumerate(np.argsort(a_points[:, 1], kind="stable")))[:: max(every, 1)]:
        ends = a_points[row] + [0, CAPTION], b_points[row] + [shift, CAPTION]
        colour = ImageColor.getrgb(f"hsl({300 * place // len(a_points)}, 100%, 50%)")
        pen.line([tuple(end) for end in ends], "black", width=3)
        pen.line([tuple(end) for end in ends], colour, width=1)
        for x, y in ends:
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], colour, "black")
    return picture


def draw_verified(
    verified: pd.DataFrame,
    photos: KeptFeatures,
    others: KeptFeatures,
    mirror: Mirror,
    how: Matching,
    size: int,
    folder: Path,
) -> None:
    """Write `folder/ID.png` for each row of a table by test id: with the train photo in its column `match`.

    Pictures of an earlier run go. `size` is that of the photos whose features are in `photos` (test) and `others`
    (train).
    """
    for old in folder.glob("*.png"):
        old.unlink()
    test = _read(mirror, "test", verified.index, photos, size)
    train = _read(mirror, "train", verified["match"], others, size)
    for identity, other in verified["match"].items():
        a, b = photos[identity], others[other]
        rows = inliers(a, b, how)
        with whole(folder / f"{identity}.png") as part:
            draw_matches(test[identity], train[other], a.points[rows[:, 0]], b.points[rows[:, 1]]).save(part)


def _read(mirror: Mirror, split: str, ids: Iterable[str], kept: KeptFeatures, size: int) -> dict[str, np.ndarray]:
    wanted = defaultdict(set)
    for identity in ids:
        wanted[kept.shard_of(identity)].add(identity)
    return {
        identity: decode(shard.read(identity), size)
        for shard in mirror.stream(split, list(wanted))
        for identity in wanted[shard.name]
    }
