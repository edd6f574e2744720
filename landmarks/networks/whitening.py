"""Whitening: the directions of embeddings that vary within a landmark count less, those that tell landmarks apart more.

It is found from embeddings of train photos in closed form, after training or without any.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from landmarks.running.arrays import open_npz
from landmarks.running.command import check_stop
from landmarks.running.files import whole

Method = Literal["none", "pca", "lda", "learned"]
FOLDS = 3
SHRINKAGES = (0.03, 0.1, 0.3, 1.0, 3.0)  # times the mean variance of a direction
MOST_QUERIES = 2000  # held-out photos that a shrinkage is judged by
UNSEEN = 0.2  # what lda leaves of the directions in which the landmarks it was found from do not differ


class Whitening(NamedTuple):
    """An affine map of embeddings: (x - mean) @ projection, L2-normalised after it."""

    mean: np.ndarray  # (D,) float32
    projection: np.ndarray  # (D, d) float32

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, D) to (N, d) float32."""
        return unit((embeddings.astype(np.float32) - self.mean) @ self.projection)


def unit(embeddings: np.ndarray) -> np.ndarray:
    """L2-normalised rows; one of zeros stays."""
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def save(path: Path, whitening: Whitening, made_from: str) -> None:
    """Write it, with a note of what it was made from; the file appears only when it is whole."""
    with whole(path) as part, open(part, "wb") as file:
        np.savez(file, made_from=made_from, **whitening._asdict())


def load(path: Path) -> tuple[Whitening, str]:
    """The whitening of a file, and the note. Raises ValueError if it is damaged, FileNotFoundError if there is none."""
    with open_npz(path) as (arrays, _):
        mean, projection = arrays["mean"], arrays["projection"]
        if mean.dtype != np.float32 or projection.dtype != np.float32 or mean.shape != projection.shape[:1]:
            raise ValueError("its arrays do not match")
        return Whitening(mean, projection), str(arrays["made_from"])


def choose_shrinkage(method: Method, embeddings: np.ndarray, landmark: np.ndarray, dimensions: int) -> float:
    """The one of `SHRINKAGES` that finds most by cross-validation: photos of each landmark are held out in `FOLDS`.

    Those find each other, by a whitening found from the rest; their mean average precision counts. 1 where no landmark
    has two photos in a fold.
    """
    which = np.unique(landmark, return_inverse=True)[1]
    if np.bincount(which).max() <= FOLDS:
        return 1.0
    order = np.random.default_rng(0).permutation(len(which))
    fold = np.empty(len(which), int)
    for label in np.unique(which):
        there = order[which[order] == label]
        fold[there] = np.arange(len(there)) % FOLDS
    precision: dict[float, list[float]] = {shrinkage: [] for shrinkage in SHRINKAGES}
    for number in range(FOLDS):
        held_out = fold == number
        found = fit(method, embeddings[~held_out], landmark[~held_out], SHRINKAGES, dimensions)
        for shrinkage, whitening in zip(SHRINKAGES, found, strict=True):
            check_stop()
            precision[shrinkage] += average_precisions(whitening(embeddings[held_out]), landmark[held_out])
    return max(SHRINKAGES, key=lambda shrinkage: float(np.mean(precision[shrinkage])))


def average_precisions(embeddings: np.ndarray, landmark: np.ndarray) -> list[float]:
    """Of each photo that is not alone, among the others; of the first `MOST_QUERIES`."""
    found = []
    for row, similarity in enumerate(embeddings[:MOST_QUERIES] @ embeddings.T):
        similarity[row] = -np.inf
        hits = (landmark == landmark[row])[np.argsort(-similarity)[:-1]]
        if hits.any():
            found.append(float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()))
    return found


def fit(
    method: Method, embeddings: np.ndarray, landmark: np.ndarray, shrinkages: Sequence[float], dimensions: int
) -> Iterator[Whitening]:
    """The whitening of that method, for each shrinkage in turn.

    Each direction is divided by the square root of its variance plus `shrinkage` times the mean variance. The variance
    is that of all photos ("pca"), of photos around the mean of their landmark ("lda"), or of pairs of one landmark, in
    which frequent landmarks count by the square of their photos ("learned"). After "lda" the directions in which the
    landmarks' means differ come first, and `UNSEEN` is left of the others; after "learned" those in which pairs of two
    landmarks differ come first, as after "pca" those of the largest variance.

    Args:
        embeddings: (N, D), L2-normalised.
        landmark: (N,), which landmark each shows.
        shrinkages: above 0; with fewer photos than dimensions more is needed.
        dimensions: those that are left, the first ones; 0: all.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018, for
    "learned"; Fisher's linear discriminant, with the shrinkage of Friedman, "Regularized Discriminant Analysis", 1989.
    """
    mean = embeddings.mean(axis=0, dtype=np.float32)
    centred = embeddings.astype(np.float32) - mean
    _, which, counts = np.unique(landmark, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), centred.shape[1]), np.float32)
    np.add.at(means, which, centred)
    means /= counts[:, None]
    rows = centred
    if method == "lda":
        rows = centred - means[which]
    elif method == "learned":
        rows = (centred - means[which]) * np.sqrt(counts[which, None])
    spectrum = _spectrum(rows)
    for shrinkage in shrinkages:
        root = _inverse_root(*spectrum, shrinkage)
        if method == "lda":
            first = _directions(root(means))
            if dimensions:
                rest = root(centred)
                rest -= rest @ first @ first.T
                order = np.concatenate([first, UNSEEN * _directions(rest)], axis=1)
                projection = root(order[:, :dimensions].T).T
            else:
                projection = UNSEEN * root(np.eye(len(mean), dtype=np.float32))
                projection += (1 - UNSEEN) * root(first.T).T @ first.T
        elif dimensions:
            projection = root(_directions(root(centred))[:, :dimensions].T).T
        else:
            projection = root(np.eye(len(mean), dtype=np.float32))
        yield Whitening(mean, projection)


def _spectrum(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (n,) and eigenvectors (D, n) of rows.T @ rows, those that are not 0."""
    # The smaller of the two products has the same eigenvalues.
    if len(rows) < rows.shape[1]:
        values, left = np.linalg.eigh(rows @ rows.T)
        some = values > 1e-6 * values[-1]
        return values[some], rows.T @ (left[:, some] / np.sqrt(values[some]))
    values, vectors = np.linalg.eigh(rows.T @ rows)
    some = values > 1e-6 * values[-1]
    return values[some], vectors[:, some]


def _inverse_root(values: np.ndarray, vectors: np.ndarray, shrinkage: float) -> Callable[[np.ndarray], np.ndarray]:
    """What multiplies rows by (S + shrinkage * mean variance)^-1/2 of a scatter S, up to a factor, of its spectrum."""
    added = shrinkage * values.sum() / len(vectors)
    scale = np.sqrt(added / (values + added)) - 1  # directions without any variance keep their length
    if len(values) < len(vectors):  # fewer photos than dimensions: making the root would take longer than using it
        there, back = (vectors * scale).astype(np.float32), vectors.T.astype(np.float32)
        return lambda rows: rows + rows @ there @ back
    root = ((vectors * scale) @ vectors.T).astype(np.float32)
    root[np.diag_indices_from(root)] += 1
    return lambda rows: rows @ root


def _directions(rows: np.ndarray) -> np.ndarray:
    """(D, d): the directions in which rows vary, the largest variance first."""
    values, vectors = _spectrum(rows)
    return vectors[:, np.argsort(-values)].astype(np.float32)
