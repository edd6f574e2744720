"""Find the photos of the same landmark in the index: embed, search, re-rank, write and score the submission.

    python retrieval.py [--work DIR] [the settings of recognition.py]

`--work` names the folder with the model that recognition.py trained. The same command goes on where an earlier run was
stopped. With `--shards 0:17` it only embeds these shards: several runs share the work, and a last one, without it,
merges.
"""

import sys
from pathlib import Path

import command
import metrics
import recipe as recipes
from command import InputError
from mirror import Mirror, open_mirror


def main() -> None:
    recipe = recipes.load(sys.argv[1:])
    if recipe.time_limit:
        command.limit_time(recipe.time_limit)
    path = recipe.work / "model.keras"
    if not path.exists():
        raise InputError(f"there is no trained model {path}: run recognition.py --work {recipe.work} to its end first")
    mirror = open_mirror(recipe.mirror, recipe.work / "mirror", recipe.ahead, recipe.strict_md5, recipe.seed)
    mirror.require("index", "test")

    command.prepare_backend()
    import features  # Keras takes seconds, which --help and a wrong setting need not wait for
    import model as models

    model, landmarks = models.load(path), models.load_labels(recipe.work / "labels.csv")
    splits = ["test", "index"] + ["train"] * (recipe.rerank and recipe.recognizer == "neighbours")
    files = {split: features.embed(model, landmarks, recipe, mirror, split) for split in splits}
    if None in files.values():
        return
    submission_csv = recipe.work / "retrieval.csv"
    write_submission(mirror, recipe, files, submission_csv)
    metrics.write_scores(
        "retrieval", submission_csv, mirror.solution("retrieval"), recipe.work / "retrieval.metrics.json"
    )


def write_submission(mirror: Mirror, recipe: recipes.Recipe, files: dict[str, list[Path]], path: Path) -> None:
    """One row for each test photo: its nearest index photos, best first, or nothing where it could not be read."""
    import rerank
    import search
    import submission

    depth = max(recipe.rerank_depth, submission.MAX_NEIGHBOURS) if recipe.rerank else submission.MAX_NEIGHBOURS
    neighbours = search.search(files["test"], files["index"], depth, recipe.index_parts)
    if recipe.rerank:
        if recipe.recognizer == "neighbours":
            neighbours = labelled_by_neighbours(neighbours, mirror, recipe, files)
        neighbours = rerank.same_landmark(neighbours, recipe.rerank_factor, recipe.rerank_depth)
    row_of = {identity: row for row, identity in enumerate(neighbours.query_ids.tolist())}

    def found(identity: str) -> list[str]:
        row = row_of.get(identity)
        positions = neighbours.positions[row] if row is not None else neighbours.positions[:0, 0]
        return neighbours.index_ids[positions[positions >= 0]].tolist()

    ids = mirror.ids("test")
    submission.write_retrieval(path, ids, map(found, ids))
    print(f"{path}: the neighbours of {len(row_of):,} photos")


def labelled_by_neighbours(neighbours, mirror: Mirror, recipe: recipes.Recipe, files: dict[str, list[Path]]):
    """The same neighbours with the landmarks that the nearest train photos give, in place of the head's."""
    import voting

    train = mirror.train()
    query, index = (
        voting.recognise(files[split], files["train"], train, recipe.votes, recipe.vote_power, recipe.index_parts)
        for split in ("test", "index")
    )
    return neighbours._replace(
        query_landmark=query["landmark"].loc[neighbours.query_ids].to_numpy(),
        index_landmark=index["landmark"].loc[neighbours.index_ids].to_numpy(),
    )


if __name__ == "__main__":
    command.run(main)
