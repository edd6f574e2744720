"""A features file: what a model says of the photos of a shard, on disk; whole, or refused."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from landmarks.running.arrays import open_npz
from landmarks.running.command import InputError
from landmarks.running.files import whole

_whole: set[tuple[Path, int, int]] = set()  # files that this process has read or written whole: path, size, time


class Features(NamedTuple):
    """What the model says of N photos; all but ids and embeddings is None where it has no head."""

    ids: np.ndarray  # (N,) str
    embeddings: np.ndarray  # (N, D) float16, L2-normalised
    landmark: np.ndarray | None = None  # (N,) int64: the predicted landmark id
    score: np.ndarray | None = None  # (N,) float32: its confidence
    top_landmark: np.ndarray | None = None  # (N, k) int64: the k = 10 best ones, or all; None in older files
    top_score: np.ndarray | None = None  # (N, k) float32: theirs, in descending order


DIMENSIONS = dict(zip(Features._fields, (1, 2, 1, 1, 2, 2), strict=True))


def save_features(path: Path, features: Features, made_from: str = "") -> None:
    """Write one shard's features; the file appears under its name only when it is whole."""
    arrays = {name: array for name, array in features._asdict().items() if array is not None}
    with whole(path) as part, open(part, "wb") as file:
        np.savez(file, made_from=made_from, **arrays)
    _whole.add(stamp(path))


def load_features(path: Path) -> Features:
    """Read one shard's features. Raises ValueError if the file is damaged (checksums are verified) or not finite."""
    state = stamp(path)
    with open_npz(path) as (arrays, _):
        features = Features(**{name: arrays[name] for name in arrays.files if name != "made_from"})
        _require_match({name: array.shape for name, array in features._asdict().items() if array is not None})
        if not _is_finite(features.embeddings):
            raise ValueError("its embeddings are not finite")  # faiss would pass over them in silence
    _whole.add(state)
    return features


def _is_finite(embeddings: np.ndarray) -> bool:
    """By the bits of float16, the largest of its sign in what is not finite: less than a tenth of numpy's time."""
    if embeddings.dtype != np.float16:
        return bool(np.isfinite(embeddings).all())
    with_sign, without = embeddings.view(np.uint16), embeddings.view(np.int16)
    return bool(with_sign.max(initial=0) < 0xFC00 and without.max(initial=0) < 0x7C00)


def made_from(path: Path) -> str:
    """The note with which the file was written; empty if there is no whole file, or one without a note."""
    try:
        with open_npz(path) as (arrays, _):
            return str(arrays["made_from"]) if "made_from" in arrays.files else ""
    except (ValueError, FileNotFoundError):
        return ""


def _require_match(shapes: dict[str, tuple[int, ...]]) -> None:
    fitting = {"ids", "embeddings"} <= set(shapes) and all(
        len(shape) == DIMENSIONS[name] for name, shape in shapes.items()
    )
    if not fitting or len({shape[0] for shape in shapes.values()}) != 1:
        raise ValueError("its arrays do not match")


def stamp(path: Path) -> tuple[Path, int, int]:
    """By which a file is known again: its path, size and time."""
    state = path.stat()
    return path.resolve(), state.st_size, state.st_mtime_ns


def is_whole(path: Path) -> bool:
    """Whether there is a features file that can be read to its end; each is read once in a process."""
    try:
        return path.exists() and (stamp(path) in _whole or load_features(path) is not None)
    except ValueError:
        return False


def require_finite(features: Features, what: str, remedy: Callable[[], str]) -> None:
    """Raise InputError if there is a photo whose embedding or score is not finite."""
    spoilt = ~np.isfinite(features.embeddings).all(axis=1)
    if features.score is not None:
        spoilt |= ~np.isfinite(features.score)
    if spoilt.any():
        raise InputError(
            f"{what}: of {spoilt.sum():,} of {len(spoilt):,} photos they are not finite, "
            f"the first is {features.ids[spoilt][0]}; {remedy()}"
        )


def take(features: Features, rows: np.ndarray) -> Features:
    """The features of some photos: `rows` is a mask (N,) bool, or their places (n,)."""
    return Features(**{name: array[rows] for name, array in features._asdict().items() if array is not None})


def concatenate(parts: Sequence[Features]) -> Features:
    """The features of all photos of some parts: what each of these has."""
    there = [name for name in Features._fields if all(getattr(part, name) is not None for part in parts)]
    return Features(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in there})


class Outline(NamedTuple):
    """What is read of a features file without its embeddings."""

    ids: np.ndarray  # (N,) str
    landmark: np.ndarray | None  # (N,) int64
    dimension: int
    crc32: int  # of the embeddings and their type and shape, as the file states it: who reads them checks it


def outline(path: Path) -> Outline:
    """What a features file holds but for its embeddings. Raises ValueError if that is damaged."""
    with open_npz(path) as (arrays, members):
        ids, landmark = arrays["ids"], arrays["landmark"] if "landmark" in arrays.files else None
        with members.open("embeddings.npy") as embeddings:
            np.lib.format.read_magic(embeddings)
            (count, dimension), _, _ = np.lib.format.read_array_header_1_0(embeddings)
        crc32 = members.getinfo("embeddings.npy").CRC
        if ids.shape != (count,) or (landmark is not None and landmark.shape != (count,)):
            raise ValueError("its arrays do not match")
    return Outline(ids, landmark, dimension, crc32)


def ids_in(files: Iterable[Path]) -> np.ndarray:
    """The ids in some features files, (N,) str. Raises ValueError if one is damaged."""
    return np.concatenate([np.empty(0, str), *(outline(path).ids for path in files)])
