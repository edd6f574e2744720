"""Which photos show no landmark: the references of the penalty. No photo that serves as one is scored."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import submission
from command import InputError, check_stop
from shards import valid_id
from submission import Solution

if TYPE_CHECKING:
    from mirror import Mirror  # with pandas, which the command that scores need not wait for

SPLITS = ("test", "train", "index")  # in the order in which ids are looked for: the first two are embedded anyway
LISTED = "metadata/non_landmarks.csv"  # in a mirror: index photos that are known to show no landmark
MAX_LINE = 100  # characters; a longer one is read in pieces, which are no ids


class References(NamedTuple):
    """Photos of no landmark, and the test photos whose scores go down with likeness to them."""

    ids: set[str] | None  # None: those of `splits` that are far from every landmark, once these are embedded
    splits: list[str]  # where they are
    serve: set[str]


def references(setting: str, mirror: "Mirror") -> list[References]:
    """What the setting `non_landmarks` says, which is nothing if it is empty.

    `auto` looks at no answers: the mirror's own `metadata/non_landmarks.csv`, else photos of the index, or of train
    where there is none, that are far from every landmark. These and a file of ids serve all test photos. `other-half`,
    which a solution is needed for, serves each half of the test photos the other's.

    Raises InputError if the file is malformed or names a photo that the mirror does not have, or there is no solution.
    """
    if not setting:
        return []
    if setting == "auto":
        from tables import read_table  # imports pandas

        own = mirror.path(LISTED)
        ids = set(read_table(own, ["id"])["id"]) if own else None
        split = "index" if mirror.shard_names("index") else "train"
        splits = _splits(ids, mirror, str(own)) if ids else [split]
        return [References(ids, splits, set(mirror.ids("test")))]
    if setting != "other-half":
        ids = read_ids(Path(setting))
        return [References(ids, _splits(ids, mirror, setting), set(mirror.ids("test")))]
    path = mirror.solution("recognition")
    if path is None:
        raise InputError(f"--non-landmarks other-half: {mirror.name} has no recognition solution; give a file of ids")
    halves = reference_halves(submission.read_recognition_solution(path), mirror.ids("test"))
    if not all(half.ids for half in halves):
        raise InputError(
            f"--non-landmarks other-half: in a half of {path} each photo has a landmark; give a file of ids"
        )
    return halves


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


def without_references(solution: Solution, references: Iterable[References]) -> Solution:
    """The solution with every photo ignored whose own score was made with it as a non-landmark."""
    served = {identity for group in references for identity in group.ids & group.serve}
    public, private = (
        {identity: landmarks for identity, landmarks in half.items() if identity not in served}
        for half in (solution.public, solution.private)
    )
    return Solution(public, private, solution.ignored | served)


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


def _splits(ids: set[str], mirror: "Mirror", path: str) -> list[str]:
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


def write_features(files: list[Path], ids: set[str], path: Path) -> None:
    """Write the features of the photos in `ids`, wherever in `files` they are, as one features file.

    Photos that could not be read have no features. Raises InputError if none has.
    """
    import numpy as np  # which the scoring, that guards against references, does not need

    from features import Features, load_features, save_features, take

    wanted, picked = np.array(sorted(ids)), []
    for file in files:
        check_stop()
        features = load_features(file)
        picked.append(take(features, np.isin(features.ids, wanted)))
    found = sum(len(features.ids) for features in picked)
    if not found:
        raise InputError(f"none of the {len(ids)} photos of no landmark could be read; name others")
    fields = zip(*picked, strict=True)
    save_features(path, Features(*(None if field[0] is None else np.concatenate(field) for field in fields)))
    print(f"{found:,} of {len(ids):,} photos of no landmark have features")
