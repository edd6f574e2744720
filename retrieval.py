"""Find the photos of the same landmark in the index: embed, search, re-rank, write and score the submission.

    python retrieval.py [--work DIR] [the settings of recognition.py]

`--work` names the folder with the model that recognition.py trained. The same command goes on where an earlier run was
stopped. With `--shards 0:17` it only embeds these shards: several runs share the work, and a last one, without it,
merges.
"""

import sys

import numpy as np

import command
import metrics
import recipe as recipes
from command import InputError
from mirror import open_mirror


def main() -> None:
    recipe = recipes.load(sys.argv[1:])
    command.prepare_backend()
    if recipe.time_limit:
        command.limit_time(recipe.time_limit)
    path = recipe.work / "model.keras"
    if not path.exists():
        raise InputError(f"there is no trained model {path}: run recognition.py --work {recipe.work} to its end first")
    mirror = open_mirror(recipe.mirror, recipe.work / "mirror", recipe.ahead, recipe.strict_md5, recipe.seed)
    mirror.require("index", "test")

    import features  # imports Keras, which takes seconds that --help and a wrong setting need not wait for
    import model as models
    import rerank
    import search
    import submission

    model, landmarks = models.load(path), models.load_labels(recipe.work / "labels.csv")
    test_files = features.embed(model, landmarks, recipe, mirror, "test")
    index_files = features.embed(model, landmarks, recipe, mirror, "index")
    if test_files is None or index_files is None:
        return
    depth = max(recipe.rerank_depth, submission.MAX_NEIGHBOURS) if recipe.rerank else submission.MAX_NEIGHBOURS
    neighbours = search.search(test_files, index_files, depth, recipe.index_parts)
    if recipe.rerank:
        neighbours = rerank.same_landmark(neighbours, recipe.rerank_factor, recipe.rerank_depth)
    rows = dict(zip(neighbours.query_ids.tolist(), neighbours.positions, strict=True))
    none = np.empty(0, "int32")  # the row of a photo that could not be read
    submission.write_retrieval(
        recipe.work / "retrieval.csv",
        ids := mirror.ids("test"),
        (neighbours.index_ids[row[row >= 0]].tolist() for row in (rows.get(identity, none) for identity in ids)),
    )
    print(f"{recipe.work / 'retrieval.csv'}: neighbours of {len(rows):,} photos")
    metrics.write_scores(
        "retrieval", recipe.work / "retrieval.csv", mirror.solution("retrieval"), recipe.work / "retrieval.metrics.json"
    )


if __name__ == "__main__":
    command.run(main)
