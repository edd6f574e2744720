"""Features files to search in: random ones, and small ones of which many tie."""

from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from landmarks.running.features_file import Features, save_features


def write(folder: Path, name: str, embeddings: np.ndarray, landmark: np.ndarray | None = None) -> Path:
    path = folder / f"{name}.npz"
    ids = np.array([f"{name}-{row}" for row in range(len(embeddings))], dtype="U20")
    save_features(path, Features(ids, embeddings.astype(np.float16), landmark))
    return path


def random_embeddings(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    embeddings = rng.standard_normal((count, dimension)).astype(np.float32)
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)


@st.composite
def searches(draw):
    """Files of queries and of the index, small whole numbers: sums of products are exact in any order, and many tie."""
    dimension = draw(st.integers(1, 5))
    photos = st.integers(0, 8).flatmap(lambda n: arrays(np.float16, (n, dimension), elements=st.integers(-2, 2)))
    files = st.lists(photos, min_size=1, max_size=5)
    return draw(files), draw(files), draw(st.integers(1, 12)), draw(st.integers(1, 7))
