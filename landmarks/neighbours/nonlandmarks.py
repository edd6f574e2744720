"""Which photos show no landmark: the references of the penalty. None is scored where it has served its own score."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from landmarks.mirrors.base import NON_LANDMARKS, Mirror
from landmarks.mirrors.shards import valid_id
from landmarks.mirrors.tables import read_table
from landmarks.neighbours.search import search, without_itself
from landmarks.running.command import InputError, check_stop
from landmarks.running.features_file import concatenate, load_features, outline, save_features, take
from landmarks.scoring import solutions
from landmarks.scoring.solutions import Solution

SPLITS = ("test", "train", "index")  # in the order in which ids are looked for: the first two are embedded anyway
MAX_LINE = 100  # characters; a longer one is read in pieces, which are no ids
FAR_SHARE = 0.1  # of the photos that are looked at, those that count as far from every landmark
MOST_LOOKED_AT = 20_000  # index or train photos; 11 minutes among 4.1 million on two cores
MOST_FAR = 2000
FEWEST = 10  # references with fewer photos tell nothing


class References(NamedTuple):
    """Photos of no landmark, and the test photos whose scores go down with likeness to them."""

    ids: set[str]
    splits: list[str]  # where they are
    serve: set[str]
    weight: float = 1.0  # the part of the likeness that is taken where train photos choose it


class FarReferences(NamedTuple):
    """The same, yet to be found: photos of `splits` that are far from every landmark, once these are embedded."""

    splits: list[str]
    serve: set[str]


def references(setting: str, mirror: Mirror) -> Sequence[References | FarReferences]:
    """What the setting `non_landmarks` says, which is nothing if it is empty.

    `auto` looks at no answers: the mirror's own `metadata/non_landmarks.csv`, else photos of the index, or of train
    where there is none, that are far from every landmark. These and a file of ids serve all test photos. `other-half`,
    which a solution is needed for, serves each half of the test photos the other's.

    Raises InputError if the file is malformed or names a photo that the mirror does not have, or there is no solution.
    """
    if not setting:
        return []
    if setting == "auto":
        split = "index" if mirror.shard_names("index") else "train"
        return [listed(mirror) or FarReferences([split], set(mirror.ids("test")))]
    if setting != "other-half":
        ids = read_ids(Path(setting))
        return [References(ids, _splits(ids, mirror, setting), set(mirror.ids("test")))]
    path = mirror.solution("recognition")
    if path is None:
        raise InputError(f"--non-landmarks other-half: {mirror.name} has no recognition solution; give a file of ids")
    halves = reference_halves(solutions.read_recognition_solution(path), mirror.ids("test"))
    if not all(half.ids for half in halves):
        raise InputError(
            f"--non-landmarks other-half: in a half of {path} each photo has a landmark; give a file of ids"
        )
    return halves


def check(setting: str) -> None:
    """Raise InputError if the setting `non_landmarks` names a file that is malformed."""
    if setting not in ("", "auto", "other-half"):
        read_ids(Path(setting))


def listed(mirror: Mirror) -> References | None:
    """The photos that the mirror itself says show no landmark, if it tells."""
    path = mirror.path(NON_LANDMARKS)
    if path is None:
        return None
    ids = set(read_table(path, ["id"])["id"])
    return References(ids, _splits(ids, mirror, str(path)), set(mirror.ids("test")))


def reference_halves(solution: Solution, test_ids: Iterable[str]) -> list[References]:
    """Public photos are served by the private half's photos of no landmark, all other test photos by the public half's.

    No photo of a half is among the references that its scores are made with, and nothing of the half's own part of the
    solution is used.
    """
    public, private = (
        {identity for identity, landmarks in half.items() if not landmarks}
        for half in (solution.public, solution.private)
    )
    return [
        References(private, ["test"], set(solution.public)),
        References(public, ["test"], set(test_ids) - set(solution.public)),
    ]


def serving_themselves(references: Iterable[References]) -> set[str]:
    """The photos whose own score is made with them as non-landmarks: they must not be scored."""
    return {identity for group in references for identity in group.ids & group.serve}


def read_ids(path: Path) -> set[str]:
    """The ids in a file that has one on each line. Raises InputError for a line that is none, or comes twice."""
    ids: set[str] = set()
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE), ""), 1):
                identity = line.removesuffix("\n")
                if not valid_id(identity) or identity in ids:
                    what = "comes twice" if identity in ids else "is no photo's id"
                    raise ValueError(f"line {number}: {identity[:40]!a} {what}")
                ids.add(identity)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must hold the id of a photo of no landmark on each line: {error}") from error
    if not ids:
        raise InputError(f"{path} is empty; it must hold the id of a photo of no landmark on each line")
    return ids


def _splits(ids: set[str], mirror: Mirror, path: str) -> list[str]:
    missing, splits = set(ids), []
    for split in SPLITS:
        here = missing.intersection(mirror.ids(split)) if missing and mirror.shard_names(split) else ()
        missing.difference_update(here)
        splits += [split] if here else []
    if missing:
        raise InputError(
            f"{path} names {min(missing)!r}, which is neither a test, train nor index photo of {mirror.name}"
        )
    return splits


def write_features(files: list[Path], ids: set[str], path: Path) -> int:
    """Write the features of the photos in `ids`, wherever in `files` they are, as one features file.

    Returns how many have any: photos that could not be read have none. Raises InputError if none has.
    """
    wanted, picked = np.array(sorted(ids)), []
    for file in files:
        check_stop()
        features = load_features(file)
        picked.append(take(features, np.isin(features.ids, wanted)))
    found = sum(len(features.ids) for features in picked)
    if not found:
        raise InputError(f"none of the {len(ids)} photos of no landmark could be read; name others")
    save_features(path, concatenate(picked))
    return found


def located(
    references: Sequence[References | FarReferences],
    files: dict[str, list[Path]],
    train: pd.DataFrame,
    parts: int,
    folder: Path,
) -> list[References]:
    """The references, with photos far from every landmark where the mirror names none; empty if there are none either.

    Args:
        files: the features of train, and of the splits that references are in.
        train: `id` and `landmark_id` of the train photos.
        parts: the train photos are searched in so many parts.
        folder: for what is found on the way.
    """
    found = [
        find_far(group, files, train, parts, folder) if isinstance(group, FarReferences) else group
        for group in references
    ]
    if not all(group.ids for group in found):
        print("no photos of no landmark are at hand: no penalty is taken")
        return []
    return found


def find_far(
    group: FarReferences, files: dict[str, list[Path]], train: pd.DataFrame, parts: int, folder: Path
) -> References:
    """The photos that stand in for non-landmarks: those of `group.splits` that are least like any train photo.

    They need no labels. Of at most 20,000 photos, drawn evenly, the tenth part whose nearest other train photo is the
    least similar. Of 761 index photos, 348 of no landmark, these were 76, and none of them
    showed one (frozen EfficientNet-Lite0).

    Args:
        train: `id` and `landmark_id` of the train photos.
        folder: for what is found on the way.
    """
    there = [path for split in group.splits for path in files[split]]
    ids = np.concatenate([outline(path).ids for path in there])
    looked_at = ids[np.linspace(0, len(ids) - 1, min(len(ids), MOST_LOOKED_AT)).astype(int)] if len(ids) else ids
    if len(looked_at) * FAR_SHARE < FEWEST:
        return References(set(), *group)
    path = folder / "looked_at.npz"
    write_features(there, set(looked_at.tolist()), path)
    neighbours = search([path], files["train"], 2, parts, pd.Index(train["id"]), folder / "looked-at-in-train")
    nearest = without_itself(neighbours).similarities[:, 0]
    far = np.argsort(nearest, kind="stable")[: min(int(len(nearest) * FAR_SHARE), MOST_FAR)]
    return References(set(neighbours.query_ids[far].tolist()), *group)
