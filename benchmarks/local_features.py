"""How well inliers tell landmarks apart, and how fast they are counted, for each extractor that is installed.

    python benchmarks/local_features.py [--mirror sample] [--split test] [--delf WORK] [--savedmodel DIR]

Draws seeded random pairs of photos of one landmark and as many of two, and prints the AUC of the inlier count over
them: 0.5 is chance. `--split test` pairs test photos with index photos by the retrieval solution; `--split train` pairs
train photos by their labels, and is what settings are chosen on. Then the seconds that a photo takes, and pairs a
second on one core and on all, beside a plain loop of OpenCV's brute-force matcher (ratio 0.8) and findHomography on the
same features, on all cores: a shared machine's speed swings, so all take turns, and the ratios are those of the median
turn. Last the hours that a decision over the 117,577 test photos of Google Landmarks v2 takes at these rates.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project; there `verification` is not this file

from landmarks.local_features.extractors import EXTRACTORS, open_extractor
from landmarks.local_features.matching import MATCHING, compare
from landmarks.local_features.points import LocalFeatures, Matching, decode, opencv
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.open import open_mirror
from landmarks.running import command, history
from landmarks.scoring.solutions import read_retrieval_solution

Pair = tuple[str, str]
TEST_PHOTOS, COMPARISONS = 117_577, 20


def draw_pairs(mirror: Mirror, split: str, count: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """`count` pairs of photos of one landmark and as many of two, each photo with a partner as likely as any other."""
    rng = np.random.default_rng(seed)
    if split == "train":
        photos = mirror.train().groupby("landmark_id")["id"].agg(list)
        related = {i: [other for other in ids if other != i] for ids in photos if len(ids) > 1 for i in ids}
    else:
        path = mirror.solution("retrieval")
        if path is None:
            raise command.InputError(f"{mirror.name} has no retrieval solution: give --split train")
        solution = read_retrieval_solution(path)
        related = {query: list(ids) for query, ids in [*solution.public.items(), *solution.private.items()]}
    firsts = sorted(related)
    seconds = sorted({other for ids in related.values() for other in ids})
    same: list[Pair] = []
    different: list[Pair] = []
    while len(same) < count:
        first = firsts[rng.integers(len(firsts))]
        same.append((first, related[first][rng.integers(len(related[first]))]))
    while len(different) < count:
        first, second = firsts[rng.integers(len(firsts))], seconds[rng.integers(len(seconds))]
        if first != second and second not in related[first]:
            different.append((first, second))
    return same, different


def read(mirror: Mirror, split: str, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    for shard in mirror.stream(split, mirror.shard_names(split)):
        for identity in wanted.intersection(shard.ids):
            yield identity, shard.read(identity)


def auc(same: list[int], different: list[int]) -> float:
    """How often a pair of one landmark has more inliers than one of two; a tie is half."""
    one, two = np.array(same)[:, None], np.array(different)
    return float(((one > two) + 0.5 * (one == two)).mean())


def count_inliers(pairs: list[Pair], features: dict[str, LocalFeatures], how: Matching) -> list[int]:
    """As a decision compares, one candidate a photo; so pairs are counted on all cores."""
    numbers = list(map(str, range(len(pairs))))
    photos = {number: features[first] for number, (first, _) in zip(numbers, pairs, strict=True)}
    candidates = {number: [second] for number, (_, second) in zip(numbers, pairs, strict=True)}
    return [row[0] for _, row in compare(candidates, photos, features, how)]


def plain_loop(pairs: list[Pair], features: dict[str, LocalFeatures]) -> None:
    cv2 = opencv()
    matcher = cv2.BFMatcher()
    for first, second in pairs:
        a, b = features[first], features[second]
        found = matcher.knnMatch(a.descriptors, b.descriptors, k=2)
        good = [pair[0] for pair in found if len(pair) == 2 and pair[0].distance < 0.8 * pair[1].distance]
        if len(good) >= 4:
            ends = np.array([a.points[m.queryIdx] for m in good]), np.array([b.points[m.trainIdx] for m in good])
            cv2.findHomography(*ends, cv2.RANSAC, 5.0)


def seconds_a_pair(pairs: list[Pair], features: dict[str, LocalFeatures], how: Matching, turns: int) -> np.ndarray:
    """(turns, 3): of the plain loop, of ours on one core, and of ours on all cores."""
    cores = os.sched_getaffinity(0)
    ways = (
        (cores, lambda: plain_loop(pairs, features)),
        ({min(cores)}, lambda: count_inliers(pairs, features, how)),
        (cores, lambda: count_inliers(pairs, features, how)),
    )
    seconds = np.empty((turns, len(ways)))
    for turn in range(turns):
        for way, (allowed, run) in enumerate(ways):
            os.sched_setaffinity(0, allowed)  # of this thread, and of those that it starts
            start = time.perf_counter()
            run()
            seconds[turn, way] = (time.perf_counter() - start) / len(pairs)
    os.sched_setaffinity(0, cores)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", default="sample", help="sample, a URL or a folder (default: %(default)s)")
    parser.add_argument("--split", choices=["train", "test"], default="test", help="(default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extractors", nargs="+", choices=list(EXTRACTORS), default=list(EXTRACTORS))
    parser.add_argument("--delf", type=Path, help="a work folder with a trained delf.keras")
    parser.add_argument("--savedmodel", type=Path, help="a folder with a SavedModel of DELF or DELG")
    parser.add_argument("--size", type=int, default=512, help="pixels of a photo's longer side (default: %(default)s)")
    parser.add_argument("--points", type=int, default=1000, help="of a photo at most (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="(default: %(default)s)")
    for field in Matching._fields:
        kind = {"transformation": str, "fits": int}.get(field, float)
        parser.add_argument(f"--{field}", type=kind, help="in place of each extractor's own")
    settings = parser.parse_args()
    print(history.stamp(), flush=True)

    mirror = open_mirror(settings.mirror)
    same, different = draw_pairs(mirror, settings.split, settings.pairs, settings.seed)
    splits = [["train"], ["test", "index"]][settings.split == "test"]
    wanted = {identity for pair in same + different for identity in pair}
    photos = {
        identity: decode(data, settings.size) for split in splits for identity, data in read(mirror, split, wanted)
    }
    cores = len(os.sched_getaffinity(0))
    print(f"{len(same)} pairs of one landmark, {len(different)} of two, {len(photos)} photos; {cores} cores")
    changed = {field: value for field in Matching._fields if (value := getattr(settings, field)) is not None}
    for name in settings.extractors:
        try:
            extract = open_extractor(name, getattr(settings, name, None), settings.points)
        except command.InputError as error:
            print(f"\n{name} is left out: {error}")
            continue
        start = time.perf_counter()
        features = dict(zip(photos, extract(list(photos.values())), strict=True))
        photo_seconds = (time.perf_counter() - start) / len(photos)
        how = MATCHING[name]._replace(**changed)
        counts = count_inliers(same + different, features, how)
        one, two = counts[: len(same)], counts[len(same) :]
        spread = np.sqrt(auc(one, two) * (1 - auc(one, two)) / len(same))
        points = np.mean([len(found.points) for found in features.values()])
        print(f"\n{name}: {points:.0f} points a photo, {how}")
        print(f"  AUC of the inlier count: {auc(one, two):.3f}, standard error at most {spread:.3f}")
        print(f"  inliers of one landmark, quartiles: {np.percentile(one, [25, 50, 75]).astype(int).tolist()}")
        print(f"  inliers of two, median, 95 % and most: {np.percentile(two, [50, 95, 100]).astype(int).tolist()}")
        print(f"  extraction: {photo_seconds * 1000:.0f} ms a photo")
        timed = 3 * (same + different)  # a second and more, beside which starting threads is nothing
        loop, on_one, on_all = np.median(seconds_a_pair(timed, features, how, settings.turns), axis=0)
        print(f"  pairs/s: {1 / loop:.0f} by the loop, {1 / on_one:.0f} on 1 core, {1 / on_all:.0f} on {cores}")
        print(f"  {loop / on_all:.1f} times the loop; {cores} cores are {on_one / on_all:.2f} times 1")
        hours = TEST_PHOTOS / 3600
        print(
            f"  {TEST_PHOTOS:,} test photos: {hours * photo_seconds:.1f} h of extraction, at most "
            f"{hours * COMPARISONS * on_all:.1f} h of comparison; {1e5 / 3600 * photo_seconds:.1f} h of extraction for "
            "every 100,000 train photos among their candidates"
        )


if __name__ == "__main__":
    command.run(main)
