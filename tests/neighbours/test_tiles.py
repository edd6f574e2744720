"""What an accelerator finds is what faiss finds, on every back end; here all of it on a CPU."""

from importlib.util import find_spec

import pytest
import scripts

PROGRAM = """
import faiss
import numpy as np

from landmarks.neighbours import tiles

tiles.TILE, tiles.QUERIES = 700, 16
generator = np.random.default_rng(0)
for photos, queries, k in [(1500, 40, 5), (701, 16, 10), (1400, 17, 100), (3, 4, 10), (0, 3, 2), (20, 0, 2)]:
    given = [generator.normal(size=(n, 8)).astype("float16").astype("float32") for n in (queries, photos)]
    similarities, places = tiles.knn(*given, k)
    assert similarities.shape == places.shape == (queries, k) and places.dtype == "int64"
    expected, where = faiss.knn(*given, k, metric=faiss.METRIC_INNER_PRODUCT) if photos and queries else (0, 0)
    there = min(photos, k)
    assert (places[:, there:] == -1).all() and (similarities[:, there:] == -np.inf).all()
    if photos and queries:
        np.testing.assert_allclose(similarities[:, :there], expected[:, :there], rtol=1e-5)
        assert (places == where).mean() > 0.99, (photos, queries, k)  # but for the order of equal ones
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_tiles_find_what_faiss_finds(backend):
    if find_spec(backend) is None:
        pytest.skip(f"pip install {backend}")
    done = scripts.run("-c", PROGRAM, environment=scripts.on(backend))
    assert done.returncode == 0, done.stderr[-3000:]
