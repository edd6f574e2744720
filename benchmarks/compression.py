"""What float16 and fewer dimensions lose: the neighbours that float32 finds in all dimensions, and mAP@100.

    python benchmarks/compression.py [MIRROR] [--recipe small-frozen] [--dimensions 512] [--json FILE]

The recipe's network embeds the mirror's photos once, in float32 and without whitening (3,840 dimensions of three sizes
side by side); PCA and LDA are found from its train photos. `kept` is the part of the nearest 10 and 100 index photos of
each test photo that float32 in all dimensions has too, mAP@100 that of the mirror's solution, in the mean of both
halves, with what it gains over that and the paired standard error.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import faiss
import numpy as np

from benchmarks import timing
from generators import Batches
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.open import open_mirror
from landmarks.networks import whitening
from landmarks.running import command
from landmarks.running import recipe as recipes
from landmarks.running.recipe import Recipe
from landmarks.scoring import solutions
from landmarks.scoring.measures import find_hits, mean_average_precision

DEPTHS = (10, 100)
SPLITS = ("train", "index", "test")


def embed(recipe: Recipe, mirror: Mirror) -> dict[str, tuple[list[str], np.ndarray]]:
    """Ids and L2-normalised embeddings (N, D) float32 of each split."""
    import model as models
    from landmarks.networks.engines import Compiled

    sizes = recipe.embedding.sizes(recipe.model.image_size)
    network = models.build_model(1, recipe.model)
    compiled = Compiled(models.predictor(network, recipe.embedding.mirrored, sizes, recipe.embedding.scale_pooling))
    found = {}
    for split in SPLITS:
        ids: list[str] = []
        parts = []
        for shard in mirror.stream(split, mirror.shard_names(split)):
            for some, images in Batches(shard, shard.ids, sizes[0], recipe.training.batch_size).at(sizes):
                ids += some
                parts.append(compiled.read([(len(some), compiled(images))])["embedding"])
        found[split] = ids, np.concatenate(parts)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mirror", nargs="?", default="sample")
    parser.add_argument("--recipe", default="small-frozen")
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--json", type=Path, help="add lines to this file")
    given = parser.parse_args()
    command.prepare_backend()
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipes.load([f"--recipe={given.recipe}", f"--work={folder}"])
        mirror = open_mirror(given.mirror, Path(folder) / "mirror")
        found = embed(recipe, mirror)
        solution_csv = mirror.solution("retrieval")
        if solution_csv is None:
            raise SystemExit(f"{given.mirror} has no retrieval solution")
        truth = solutions.read_retrieval_solution(solution_csv)
        train = mirror.train().set_index("id")["landmark_id"]
    (ids, learnt), (index_ids, index), (test_ids, queries) = (found[split] for split in SPLITS)
    landmark = train[ids].to_numpy()
    everything = learnt.shape[1]

    ways = {f"float32, {everything:,}": (index, queries)}
    for method in ("pca", "lda"):
        shrinkage = whitening.choose_shrinkage(method, learnt, landmark, given.dimensions)
        (fitted,) = whitening.fit(method, learnt, landmark, [shrinkage], given.dimensions)
        ways[f"{method.upper()} {given.dimensions}, float32"] = fitted(index), fitted(queries)
    # What is stored is rounded; the search is in float32.
    for name, way in list(ways.items()):
        photos, asked = (some.astype(np.float16).astype(np.float32) for some in way)
        ways[name.replace("float32", "float16")] = photos, asked

    reference: dict[str, np.ndarray] = {}
    figures: dict[str, list[float]] = {}
    for name, (photos, asked) in ways.items():
        _, places = faiss.knn(asked, photos, min(max(DEPTHS), len(photos)), metric=faiss.METRIC_INNER_PRODUCT)
        lists = {one: [index_ids[place] for place in row] for one, row in zip(test_ids, places.tolist(), strict=True)}
        halves = (truth.public, truth.private)
        hits = [find_hits({one: lists[one] for one in half if one in lists}, half) for half in halves]
        precisions = [np.array([mean_average_precision([hit]) for hit in some]) for some in hits]
        if not reference:
            reference = {"places": places, **{str(half): one for half, one in enumerate(precisions)}}
        same = list(zip(places, reference["places"], strict=True))
        kept = {depth: [len(np.intersect1d(one[:depth], other[:depth])) / depth for one, other in same]
                for depth in DEPTHS if depth <= places.shape[1]}  # fmt: skip
        gains = [one - reference[str(half)] for half, one in enumerate(precisions)]
        gain = np.mean([some.mean() for some in gains])
        error = np.sqrt(sum(some.var(ddof=1) / len(some) for some in gains)) / len(gains)
        told = ", ".join(f"{np.mean(part):.4f} of the nearest {depth}" for depth, part in kept.items())
        value = float(np.mean([some.mean() for some in precisions]))
        print(f"{name:24} mAP@100 {value:.4f} ({gain:+.4f} ± {error:.4f}); kept {told}")
        figures[name] = [value]
    first = next(iter(figures))
    pairs = [(name, first, 0.99) for name in figures if name != first]
    question = f"float16 and fewer dimensions, {given.recipe}, {Path(given.mirror).name}"
    timing.report(question, figures, "mAP@100", pairs, given.json)


if __name__ == "__main__":
    main()
