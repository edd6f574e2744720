"""How fast photos are verified, beside the way before, in turns: photos/s of DELF, and pairs/s of comparing.

    python benchmarks/verification.py [--mirror sample] [--delf WORK] [--photos 64] [--json FILE]

Before, each level of each photo went through the network alone, by `predict_on_batch`, and every candidate's matches
were found on the CPU and had a map fitted, up to the first with more inliers than enough. Now levels of one shape go
together through one compiled function, which on a CPU has the weights as constants; matches are found on an accelerator
where there is one; and no map is fitted where a candidate has no more matches than another one has inliers. Photos are
compared with up to 20 of their own landmark, and of another one. Both ways have to find the same.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project; there `verification` is not this file

from benchmarks import timing
from landmarks.local_features.matching import MATCHING, compare, inliers
from landmarks.local_features.points import LocalFeatures, Matching, decode
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.open import open_mirror
from landmarks.running import command
from landmarks.running.threads import in_threads

COMPARISONS = 20


def photos_of(mirror: Mirror, count: int, size: int) -> dict[str, np.ndarray]:
    """The first train photos."""
    found: dict[str, np.ndarray] = {}
    for shard in mirror.stream("train", mirror.shard_names("train")):
        for identity in shard.ids[: count - len(found)]:
            found[identity] = decode(shard.read(identity), size)
    return found


def candidates_of(mirror: Mirror, photos: list[str], right: bool) -> dict[str, list[str]]:
    """Other photos of each one's landmark or of the one that follows, at most 20."""
    landmark_of = mirror.train().set_index("id")["landmark_id"].loc[photos]
    known = sorted(set(landmark_of))
    following = dict(zip(known, [*known[1:], known[0]], strict=True))
    predicted = landmark_of if right else landmark_of.map(following)
    return {
        photo: [i for i in landmark_of.index[landmark_of == landmark] if i != photo][:COMPARISONS]
        for photo, landmark in predicted.items()
    }


def compare_before(
    candidates: dict[str, list[str]], features: dict[str, LocalFeatures], how: Matching, enough: float
) -> list[list[int]]:
    from threadpoolctl import threadpool_limits

    def count(photo: str) -> list[int]:
        counts: list[int] = []
        for other in candidates[photo]:
            counts.append(len(inliers(features[photo], features[other], how)))
            if counts[-1] > enough:
                break
        return counts

    with threadpool_limits(1, "blas"):
        return list(in_threads(count, candidates, ahead=64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", default="sample", help="of the photos (default: %(default)s)")
    parser.add_argument("--delf", type=Path, help="a work folder with a trained DELF; default: DELF without training")
    parser.add_argument("--photos", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="pixels of a photo's longer side (default: %(default)s)")
    parser.add_argument("--points", type=int, default=1000, help="of a photo at most (default: %(default)s)")
    parser.add_argument("--inliers", type=int, default=35, help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="a file that gets a line of JSON for each question")
    parser.add_argument("--busy", action="store_true", help="measure although the machine has other work")
    settings = parser.parse_args()
    timing.require_idle(settings.busy)

    command.prepare_backend()
    import model as models
    from landmarks.local_features import delf
    from landmarks.networks.devices import accelerated

    mirror = open_mirror(settings.mirror)
    name = "delf" if settings.delf else "untrained"
    network = models.load(settings.delf / delf.FILE) if settings.delf else delf.untrained()
    photos = photos_of(mirror, settings.photos, settings.size)
    together, shown = delf.extractor(network, settings.points), list(photos.values())

    def one_by_one() -> list[LocalFeatures]:
        def predict(levels):
            return network.predict_on_batch(levels[0])

        return [delf.extract(predict, [photo], settings.points)[0] for photo in shown]

    def in_groups() -> list[LocalFeatures]:
        groups = [shown[first : first + 16] for first in range(0, len(shown), 16)]
        return [found for group in groups for found in together(group)]

    found = in_groups()
    same = [
        np.isin(a.points.sum(axis=1), b.points.sum(axis=1)).mean() for a, b in zip(one_by_one(), found, strict=True)
    ]
    print(f"{timing.machine()}\n{len(photos)} photos; {np.mean(same):.2%} of the points are those of the way before")
    rates = timing.in_turns(
        {"one by one": lambda: len(one_by_one()), "compiled": lambda: len(in_groups())}, settings.turns
    )
    timing.report("local features", rates, "photos/s", [("compiled", "one by one", 1.2)], settings.json)

    features = dict(zip(photos, found, strict=True))
    where = "accelerator" if accelerated() else "CPU"
    for whose, right in (("the photos' own landmark", True), ("another landmark", False)):
        candidates = candidates_of(mirror, list(photos), right)
        time_comparing(candidates, features, MATCHING[name], where, whose, settings)


def time_comparing(
    candidates: dict[str, list[str]],
    features: dict[str, LocalFeatures],
    how: Matching,
    where: str,
    whose: str,
    settings: argparse.Namespace,
) -> None:
    enough = 2 * settings.inliers - 1

    def before() -> list[list[int]]:
        return compare_before(candidates, features, how, enough)

    def now() -> list[list[int]]:
        return [row for _, row in compare(candidates, features, features, how, enough)]

    def counted(way: Callable[[], list[list[int]]]) -> float:
        way()
        return pairs

    counts, again = before(), now()
    pairs = sum(map(len, counts))
    differ = sum(max(a, default=0) != max(b, default=0) for a, b in zip(counts, again, strict=True))
    fewer = sum(n == 0 < m for a, b in zip(counts, again, strict=True) for m, n in zip(a, b, strict=False))
    print(f"\n{differ} of {len(counts)} photos have another number of inliers than before; {fewer} maps are not fitted")
    ways = {"before": before, f"now, {where}": now}
    rates = timing.in_turns({name: partial(counted, way) for name, way in ways.items()}, settings.turns)
    timing.report(f"{pairs} pairs of {whose}", rates, "pairs/s", [(f"now, {where}", "before", 1.0)], settings.json)


if __name__ == "__main__":
    command.run(main)
