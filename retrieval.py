"""Find the photos of the same landmark in the index: embed, search, re-rank, write and score the submission.

    python retrieval.py [--work DIR|A,B] [the settings of recognition.py]

`--work` names the folder with the model that recognition.py trained, or several. The same command goes on where an
earlier run was stopped. With `--shards 0:17` it only embeds these shards: several runs share the work, and a last one,
without it, merges.
"""

import sys
from pathlib import Path

import pandas as pd

from landmarks.mirrors.base import Mirror
from landmarks.mirrors.open import open_mirror
from landmarks.neighbours import expansion, neighbourhood, rerank, search, voting
from landmarks.neighbours.search import Neighbours
from landmarks.running import command
from landmarks.running import recipe as recipes
from landmarks.running.answer_settings import RetrievalSettings
from landmarks.running.files import make_writable
from landmarks.running.locks import held
from landmarks.running.recipe import Recipe
from landmarks.running.settings import RunSettings
from landmarks.scoring import scores, solutions, submissions

UNUSED = recipes.FIXED | {  # what a trained work folder has settled, and what is recognition.py's alone
    "checkpoint_minutes", "blend", "non_landmarks", "penalty", "penalty_weight", "most_predicted", "calibrate",
    "non_landmark_share", "verify", "inlier_weight", "comparisons",
}  # fmt: skip


def main() -> None:
    recipe = recipes.load(sys.argv[1:], UNUSED)
    run = recipe.run
    if run.time_limit:
        command.limit_time(run.time_limit)
    if run.submission:
        make_writable(Path(run.submission).parent)
    for folder in run.folders:
        recipes.of(folder)  # there is a trained model
    if recipe.source.solution:
        solutions.read_retrieval_solution(Path(recipe.source.solution))
    with held(run.work, *run.folders):
        retrieve(recipe)


def retrieve(recipe: Recipe) -> None:
    """The whole job, with the work folder to itself."""
    run, settings = recipe.run, recipe.retrieval
    mirror = open_mirror(recipe.source.mirror, run.work / "mirror", recipe.training.seed, recipe.source)
    mirror.require("index", "test")
    if run.models:
        recipe.keep()  # their common work folder may be new

    command.prepare_backend()
    from landmarks.neighbours import ensemble  # Keras takes seconds, which --help and a wrong setting need not wait for

    if settings.rerank_inliers:
        from landmarks.local_features import decision

        decision.require(run, recipe.model, recipe.verification)
    by_train_photos = settings.rerank and recipe.recognition.recognizer != "head"
    files = ensemble.embed(run, recipe.embedding, mirror, ["test", "index"] + ["train"] * by_train_photos)
    if files is None:
        return
    neighbours = find(run, settings, files)
    if settings.rerank:
        neighbours = bring_nearer(settings, neighbours, *labels(recipe, mirror, files))
    if settings.rerank_inliers:
        neighbours = decision.rerank(run, recipe.verification, mirror, files, neighbours, count=settings.rerank_inliers)
    submission_csv = run.work / "retrieval.csv"
    write_submission(mirror, neighbours, submission_csv)
    submissions.copy(submission_csv, run.submission)
    scores.write_scores(
        "retrieval",
        submission_csv,
        mirror.solution("retrieval"),
        run.work / "retrieval.metrics.json",
    )


def find(run: RunSettings, settings: RetrievalSettings, files: dict[str, list[Path]]) -> Neighbours:
    """The index photos nearest to each test photo, as many as are needed, by the settings that need embeddings."""
    queries, index, parts = files["test"], files["index"], run.index_parts
    if settings.database_augmentation:
        folder = run.work / "expanded/index"
        index = expansion.expand(index, index, folder, settings.database_augmentation, parts=parts)
    if settings.query_expansion:
        folder = run.work / "expanded/test"
        queries = expansion.expand(queries, index, folder, settings.query_expansion, parts=parts)
    by_neighbours = settings.rerank_neighbours != "none"
    depth = max(
        submissions.MAX_NEIGHBOURS, settings.rerank * settings.rerank_depth, by_neighbours * settings.neighbours_depth
    )
    found = search.search(queries, index, depth, parts, keep=run.work / "neighbours/test-in-index")
    if not by_neighbours:
        return found
    keep = run.work / "neighbours/by-neighbours"
    if settings.rerank_neighbours == "superglobal":
        return neighbourhood.superglobal(
            queries, index, found, settings.neighbours_depth, keep,
            settings.superglobal_count, settings.superglobal_weight, parts,
        )  # fmt: skip
    return neighbourhood.reciprocal(
        queries, index, found, settings.neighbours_depth, keep,
        settings.reciprocal_count, settings.reciprocal_expansion, settings.reciprocal_weight, parts,
    )  # fmt: skip


def labels(recipe: Recipe, mirror: Mirror, files: dict[str, list[Path]]) -> list[pd.DataFrame]:
    """The `landmark` of all test and all index photos, by id, and how sure it is (`score`): as the recognizer has them.

    Of votes that is their power mean, so that it is a similarity, however many vote with whatever power; `soft`
    re-ranking is published with the landmark and the cosine of the nearest train photo alone.
    """
    from landmarks.training.selection import voters

    run, settings = recipe.run, recipe.recognition
    if settings.recognizer == "head":
        return [voting.head(files[split]) for split in ("test", "index")]
    votes, power = settings.votes, settings.vote_power
    if settings.recognizer == "centres" or recipe.retrieval.rerank_by == "soft":
        votes, power = 1, 1.0
    voting_photos = voters(settings.vote_all, recipe.photos, mirror, run.folders[0])
    gallery = voting.gallery(settings.recognizer, files["train"], voting_photos, run.work)
    found = []
    for split in ("test", "index"):
        keep = run.work / f"neighbours/{split}-by-{settings.recognizer}"
        found.append(voting.recognise(files[split], *gallery, votes, power, run.index_parts, keep))
    return [one.assign(score=(one["score"].clip(lower=0) / votes) ** (1 / power)) for one in found]


def bring_nearer(
    settings: RetrievalSettings, neighbours: Neighbours, of_queries: pd.DataFrame, of_index: pd.DataFrame
) -> Neighbours:
    """Re-rank: neighbours with the query's landmark come nearer, by what `labels` says of both."""
    query, index = of_queries.loc[neighbours.query_ids], of_index.loc[neighbours.index_ids]
    neighbours = neighbours._replace(
        query_landmark=query["landmark"].to_numpy(), index_landmark=index["landmark"].to_numpy()
    )
    query_score, index_score = query["score"].to_numpy(), index["score"].to_numpy()
    if settings.rerank_by == "soft":
        return rerank.soft_same_landmark(neighbours, index_score)
    if settings.rerank_by == "insert":
        return rerank.sort_and_insert(neighbours, query_score, index_score, settings.rerank_least)
    return rerank.same_landmark(neighbours, settings.rerank_factor, settings.rerank_depth)


def write_submission(mirror: Mirror, neighbours: Neighbours, path: Path) -> None:
    """One row for each test photo: its nearest index photos, best first, or nothing where it could not be read.

    The best 100 are written: there are more where they were re-ranked by their neighbours alone.
    """
    row_of = {identity: row for row, identity in enumerate(neighbours.query_ids.tolist())}

    def found(identity: str) -> list[str]:
        row = row_of.get(identity)
        positions = neighbours.positions[row] if row is not None else neighbours.positions[:0, 0]
        return neighbours.index_ids[positions[positions >= 0]][: submissions.MAX_NEIGHBOURS].tolist()

    ids = mirror.ids("test")
    submissions.write_retrieval(path, ids, map(found, ids))
    print(f"{path}: the neighbours of {len(row_of):,} photos")


if __name__ == "__main__":
    command.run(main)
