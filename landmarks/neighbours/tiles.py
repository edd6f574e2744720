"""Exact nearest neighbours on an accelerator: products and top-k of one tile of the index after another."""

from typing import Any

import numpy as np
from keras import ops

TILE = 2**16  # index photos on the device at once: half a gigabyte of 2,048 dimensions
QUERIES = 1024  # at once: a quarter of a gigabyte of similarities
GROUP = 64  # neighbouring photos, of which the most similar one stands for all at first


def knn(queries: np.ndarray, photos: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` photos with the largest inner product for each query, as `faiss.knn` finds them; waits for the device.

    A top-k reads what it is given several times over. So it is given the largest similarity of each group of photos
    first: no photo outside the k groups with the largest ones can be among the k nearest. Accelerators may multiply
    float32 in TensorFloat-32, whose 10 bits of mantissa hold a float16 embedding as it is; sums are in float32.

    Args:
        queries, photos: (Q, D) and (N, D) float32, with values of float16.

    Returns:
        Similarities (Q, k) float32 in descending order and places (Q, k) int64; -inf and -1 where N is below k.
    """
    batches = [ops.convert_to_tensor(queries[first : first + QUERIES]) for first in range(0, len(queries), QUERIES)]
    best: list[list[tuple[Any, Any]]] = [[] for _ in batches]
    for start in range(0, len(photos), TILE):
        tile = ops.transpose(ops.convert_to_tensor(photos[start : start + TILE]))
        for batch, found in zip(batches, best, strict=True):
            similarities, places = _largest(ops.matmul(batch, tile), k)
            found.append((similarities, places + start))
            if len(found) > 1:
                both, where = (ops.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
                similarities, order = ops.top_k(both, min(k, both.shape[1]))
                found[:] = [(similarities, ops.take_along_axis(where, order, axis=1))]
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    places = np.full((len(queries), k), -1, np.int64)
    for number, found in enumerate(best):
        rows = slice(number * QUERIES, (number + 1) * QUERIES)
        for values, where in found:
            similarities[rows, : values.shape[1]] = ops.convert_to_numpy(values)
            places[rows, : values.shape[1]] = ops.convert_to_numpy(where)
    return similarities, places


def _largest(similarities: Any, k: int) -> tuple[Any, Any]:
    """The `k` largest of each row, or all, and their places."""
    count, width = similarities.shape
    if width <= k * GROUP:
        return ops.top_k(similarities, min(k, width))
    padding = -width % GROUP
    grouped = ops.pad(similarities, [(0, 0), (0, padding)], constant_values=-np.inf) if padding else similarities
    grouped = ops.reshape(grouped, (count, -1, GROUP))
    _, groups = ops.top_k(ops.max(grouped, axis=2), k)
    candidates = ops.take_along_axis(grouped, groups[:, :, None], axis=1)
    values, order = ops.top_k(ops.reshape(candidates, (count, -1)), k)
    return values, ops.take_along_axis(groups, order // GROUP, axis=1) * GROUP + order % GROUP
