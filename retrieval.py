"""Find the photos of the same landmark in the index: embed, search, re-rank, write and score the submission.

    python retrieval.py [--work DIR|A,B] [the settings of recognition.py]

`--work` names the folder with the model that recognition.py trained, or several. The same command goes on where an
earlier run was stopped. With `--shards 0:17` it only embeds these shards: several runs share the work, and a last one,
without it, merges.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import command
import metrics
import recipe as recipes
import submission
from mirror import Mirror, open_mirror
from settings import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from search import Neighbours


def main() -> None:
    recipe = recipes.load(sys.argv[1:])
    if recipe.time_limit:
        command.limit_time(recipe.time_limit)
    for folder in recipe.folders:
        recipes.of(folder)  # there is a trained model
    mirror = open_mirror(recipe.mirror, recipe.work / "mirror", recipe.ahead, recipe.strict_md5, recipe.seed)
    mirror.require("index", "test")
    if recipe.models:
        recipes.keep(recipe)  # their common work folder may be new

    command.prepare_backend()
    import ensemble  # Keras takes seconds, which --help and a wrong setting need not wait for

    if recipe.rerank_inliers:
        import verification

        verification.require(recipe)
    by_train_photos = recipe.rerank and recipe.recognizer != "head"
    files = ensemble.embed(recipe, mirror, ["test", "index"] + ["train"] * by_train_photos)
    if files is None:
        return
    neighbours = find(recipe, files)
    if recipe.rerank:
        neighbours = bring_nearer(recipe, neighbours, *labels(recipe, mirror, files))
    if recipe.rerank_inliers:
        neighbours = verification.rerank(recipe, mirror, files, neighbours)
    submission_csv = recipe.work / "retrieval.csv"
    write_submission(mirror, neighbours, submission_csv)
    metrics.write_scores(
        "retrieval", submission_csv, mirror.solution("retrieval"), recipe.work / "retrieval.metrics.json"
    )


def find(recipe: Recipe, files: dict[str, list[Path]]) -> "Neighbours":
    """The index photos nearest to each test photo, as many as are needed, after expansion where that is wanted."""
    import expansion
    import search

    queries, index, parts = files["test"], files["index"], recipe.index_parts
    if recipe.database_augmentation:
        folder = recipe.work / "expanded/index"
        index = expansion.expand(index, index, folder, recipe.database_augmentation, parts=parts)
    if recipe.query_expansion:
        folder = recipe.work / "expanded/test"
        queries = expansion.expand(queries, index, folder, recipe.query_expansion, parts=parts)
    depth = max(recipe.rerank_depth, submission.MAX_NEIGHBOURS) if recipe.rerank else submission.MAX_NEIGHBOURS
    return search.search(queries, index, depth, parts, keep=recipe.work / "neighbours/test-in-index")


def labels(recipe: Recipe, mirror: Mirror, files: dict[str, list[Path]]) -> list["pd.DataFrame"]:
    """The `landmark` of all test and all index photos, by id, and how sure it is (`score`): as the recognizer has them.

    Of votes that is their power mean, so that it is a similarity, however many vote with whatever power; `soft`
    re-ranking is published with the landmark and the cosine of the nearest train photo alone.
    """
    import voting

    if recipe.recognizer == "head":
        return [voting.head(files[split]) for split in ("test", "index")]
    votes, power = recipe.votes, recipe.vote_power
    if recipe.recognizer == "centres" or recipe.rerank_by == "soft":
        votes, power = 1, 1.0
    gallery = voting.gallery(recipe, mirror, files["train"])
    found = []
    for split in ("test", "index"):
        keep = recipe.work / f"neighbours/{split}-by-{recipe.recognizer}"
        found.append(voting.recognise(files[split], *gallery, votes, power, recipe.index_parts, keep))
    return [one.assign(score=(one["score"].clip(lower=0) / votes) ** (1 / power)) for one in found]


def bring_nearer(
    recipe: Recipe, neighbours: "Neighbours", of_queries: "pd.DataFrame", of_index: "pd.DataFrame"
) -> "Neighbours":
    """Re-rank: neighbours with the query's landmark come nearer, by what `labels` says of both."""
    import rerank

    query, index = of_queries.loc[neighbours.query_ids], of_index.loc[neighbours.index_ids]
    neighbours = neighbours._replace(
        query_landmark=query["landmark"].to_numpy(), index_landmark=index["landmark"].to_numpy()
    )
    query_score, index_score = query["score"].to_numpy(), index["score"].to_numpy()
    if recipe.rerank_by == "soft":
        return rerank.soft_same_landmark(neighbours, index_score)
    if recipe.rerank_by == "insert":
        return rerank.sort_and_insert(neighbours, query_score, index_score, recipe.rerank_least)
    return rerank.same_landmark(neighbours, recipe.rerank_factor, recipe.rerank_depth)


def write_submission(mirror: Mirror, neighbours: "Neighbours", path: Path) -> None:
    """One row for each test photo: its nearest index photos, best first, or nothing where it could not be read."""
    row_of = {identity: row for row, identity in enumerate(neighbours.query_ids.tolist())}

    def found(identity: str) -> list[str]:
        row = row_of.get(identity)
        positions = neighbours.positions[row] if row is not None else neighbours.positions[:0, 0]
        return neighbours.index_ids[positions[positions >= 0]].tolist()

    ids = mirror.ids("test")
    submission.write_retrieval(path, ids, map(found, ids))
    print(f"{path}: the neighbours of {len(row_of):,} photos")


if __name__ == "__main__":
    command.run(main)
