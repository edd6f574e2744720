"""Images to embeddings on disk, one file a shard; shards that are done are skipped."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from files import whole


class Features(NamedTuple):
    """What the model says of N photos; `landmark` and `score` are None where it has no head."""

    ids: np.ndarray  # (N,) str
    embeddings: np.ndarray  # (N, D) float16, L2-normalised
    landmark: np.ndarray | None = None  # (N,) int64: the predicted landmark id
    score: np.ndarray | None = None  # (N,) float32: its confidence


def save_features(path: Path, features: Features) -> None:
    """Write one shard's features; the file appears under its name only when it is whole."""
    with whole(path) as part, open(part, "wb") as file:
        np.savez(file, **{name: array for name, array in features._asdict().items() if array is not None})


def load_features(path: Path) -> Features:
    """Read one shard's features. Raises ValueError if the file is damaged (its checksums are verified)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            features = Features(**{name: arrays[name] for name in arrays.files})
        if len(features.ids) != len(features.embeddings) or features.embeddings.ndim != 2:
            raise ValueError("ids and embeddings do not match")
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a whole features file: {error}") from error
    return features
