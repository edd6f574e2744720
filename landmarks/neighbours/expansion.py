"""Embeddings to better embeddings, which a second search takes: query expansion and database augmentation."""

import shutil
from pathlib import Path

import numpy as np

from landmarks.neighbours.search import Neighbours, Search, split_evenly
from landmarks.neighbours.search import search as exact_search
from landmarks.running.command import check_stop
from landmarks.running.features_file import is_whole, load_features, save_features
from landmarks.running.files import prepare_folder
from landmarks.running.progress import Progress


def expand(
    files: list[Path],
    index_files: list[Path],
    folder: Path,
    count: int,
    alpha: float = 3.0,
    parts: int = 1,
    search: Search = exact_search,
) -> list[Path]:
    """Replace each embedding by the L2-normalised sum of itself and similarity**alpha times its `count` nearest ones.

    Where `files` are the queries', that is alpha query expansion; where they are `index_files`, database augmentation,
    in which a photo is not its own neighbour. Negative similarities count 0, alpha 0 is the plain average. Source:
    Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018 (alpha 3).

    Files that are there already stay, unless they were made from others or with another `count` or `alpha`. Memory: a
    search in `parts`, of one `parts`-th of `files`, which is held as stored and twice in float32. The index is read
    twice for each of these.

    Args:
        folder: where the new features files go, under their old names; one that holds nothing else. Until they are
            there, what was searched for them is in `neighbours`.

    Returns:
        the new files, in the order of `files`.
    """
    prepare_folder(folder, [*files, *index_files], count=count, alpha=alpha)
    groups = [[files[number] for number in group] for group in split_evenly([1] * len(files), parts)]
    for group in Progress(groups, f"expand into {folder}", unit=" parts"):
        todo = [path for path in group if not is_whole(folder / path.name)]
        if todo:
            depth = count + 1  # as a photo may find itself
            neighbours = search(todo, index_files, depth, parts, keep=folder / "neighbours")
            _expand(todo, index_files, folder, count, alpha, neighbours)
    shutil.rmtree(folder / "neighbours", ignore_errors=True)
    return [folder / path.name for path in files]


def _expand(
    files: list[Path], index_files: list[Path], folder: Path, count: int, alpha: float, neighbours: Neighbours
) -> None:
    old = [load_features(path) for path in files]
    embeddings = np.concatenate([features.embeddings for features in old], dtype=np.float32)
    others = np.append(neighbours.index_ids, "")[neighbours.positions] != neighbours.query_ids[:, None]
    found = others & (neighbours.positions >= 0)
    nearest = found & (found.cumsum(axis=1) <= count)
    weights = np.maximum(neighbours.similarities, 0) ** np.float32(alpha)
    start = 0
    for path in index_files:
        check_stop()
        index = load_features(path).embeddings
        inside = nearest & (neighbours.positions >= start) & (neighbours.positions < start + len(index))
        for rank in np.flatnonzero(inside.any(axis=0)):
            query = np.flatnonzero(inside[:, rank])
            embeddings[query] += weights[query, rank, None] * index[neighbours.positions[query, rank] - start]
        start += len(index)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    begin = 0
    for path, features in zip(files, old, strict=True):
        new = embeddings[begin : (begin := begin + len(features.ids))]
        save_features(folder / path.name, features._replace(embeddings=new.astype(features.embeddings.dtype)))
