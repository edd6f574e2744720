"""Find the photos of the same landmark in the index: embed, search, re-rank, write and score the submission.

    python retrieval.py [--work DIR|A,B] [the settings of recognition.py]
    python retrieval.py add WORK FOLDER                                 photos that the index shall have too
    python retrieval.py remove WORK [ID...] [--landmark NAME] [--all]   ... and shall have no longer

`--work` names the folder with the model that recognition.py trained, or several. The same command goes on where an
earlier run was stopped. With `--shards 0:17` it only embeds these shards: several runs share the work, and a last one,
without it, merges.

Photos that were added are found among the others, so they stand in retrieval.csv: its scores take them for wrong, and a
competition does not know them. Those of known landmarks vote when neighbours are re-ranked.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from landmarks.cluster import work_copy
from landmarks.mirrors.base import Mirror
from landmarks.report import ending, tracking
from landmarks.running import command
from landmarks.running import recipe as recipes
from landmarks.running.answer_settings import RetrievalSettings
from landmarks.running.command import InputError
from landmarks.running.files import make_writable
from landmarks.running.history import noted
from landmarks.running.locks import held
from landmarks.running.recipe import Recipe
from landmarks.running.settings import RunSettings
from landmarks.scoring import scores, solutions, submissions

if TYPE_CHECKING:
    import pandas as pd

    from landmarks.neighbours.growing import Added
    from landmarks.neighbours.search import Neighbours

UNUSED = recipes.FIXED | {  # what a trained work folder has settled, and what is recognition.py's alone
    "checkpoint_minutes", "hosts", "blend", "non_landmarks", "penalty", "penalty_weight", "most_predicted", "calibrate",
    "non_landmark_share", "verify", "inlier_weight", "comparisons", "verify_budget",
}  # fmt: skip


def main() -> None:
    if sys.argv[1:2] in (["add"], ["remove"]):
        return grow()
    if {"-h", "--help"} & set(sys.argv):
        print("`add WORK FOLDER` and `remove WORK` let the index of a work folder grow, as `add --help` explains.\n")
    recipe = recipes.load(work_copy.fetched(sys.argv[1:]), UNUSED)
    run = recipe.run
    from landmarks.cluster import tasks  # numpy and requests, which --help need not wait for

    tasks.require(run.cluster)
    if run.time_limit:
        command.limit_time(run.time_limit)
    if run.submission:
        make_writable(Path(run.submission).parent)
    for folder in run.folders:
        recipes.of(folder)  # there is a trained model
    tracking.require(run.track)
    if recipe.source.solution:
        solutions.read_retrieval_solution(Path(recipe.source.solution))
    with held(run.work, *run.folders), work_copy.kept(run.work, run.store):
        with noted(run.work):
            retrieve(recipe)
        ending.keep(run, recipe.source, recipe.training.seed, recipe.model_dump(mode="json"), "retrieval")


def grow() -> None:
    """Add photos to what a finished work folder knows, or take them out: the commands `add` and `remove`."""
    parser = command.Parser(prog="retrieval.py", description="Let the index of a finished work folder grow.")
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser(
        "add", help="photos that the index shall have too",
        description="Photos in a folder of FOLDER show the landmark of its name, or number: a known one, or a new one, "
        "which identify.py names from then on. Those in FOLDER itself are found in the index, and no more. Nothing is "
        "trained. The same photo once more is passed over.",
    )  # fmt: skip
    adding.add_argument("work", metavar="WORK", help="of a finished run; A,B for several models together")
    adding.add_argument("folder", metavar="FOLDER", type=Path, help="of photos, and of folders of them")
    adding.add_argument("--nested", action="store_true", help="landmarks may lie deeper, as in mirror.py import")
    removing = commands.add_parser("remove", help="photos that were added, and shall be there no longer")
    removing.add_argument("work", metavar="WORK")
    removing.add_argument("ids", metavar="ID", nargs="*", help="of such a photo, as WORK/added/photos.csv has it")
    removing.add_argument("--landmark", action="append", default=[], help="all that were added of it: name or number")
    removing.add_argument("--all", action="store_true", help="all that were added")
    given = parser.parse_args()
    if given.command == "remove" and not (given.ids or given.landmark or given.all):
        raise InputError("name the photos to take out: their ids, --landmark NAME, or --all; see --help")
    recipe = recipes.load([f"--work={given.work}"])
    run = recipe.run
    for folder in run.folders:
        recipes.of(folder)  # there is a trained model
    command.prepare_backend()
    from landmarks.neighbours import ensemble, gallery, growing

    with held(run.work, *run.folders):
        if given.command == "remove":
            growing.remove(run.work, given.ids, given.landmark, given.all)
        else:
            members = ensemble.members(run, recipe.embedding)
            kept = gallery.opened(run, members, recipe.recognition, recipe.verification)
            growing.add(run, recipe.embedding, recipe.recognition, kept, given.folder, given.nested)


def retrieve(recipe: Recipe) -> None:
    """The whole job, with the work folder to itself."""
    from landmarks.mirrors.added import WithAdded  # pandas takes half a second, which --help need not wait for
    from landmarks.mirrors.open import open_mirror

    run, settings = recipe.run, recipe.retrieval
    mirror = open_mirror(recipe.source.mirror, run.work / "mirror", recipe.training.seed, recipe.source)
    mirror.require("index", "test")
    if run.models:
        recipe.keep()  # their common work folder may be new

    command.prepare_backend()
    if run.devices != "1":
        from landmarks.networks import devices

        devices.share(run.devices, [recipes.of(folder).divisible() for folder in run.folders])
    from landmarks.neighbours import ensemble, growing  # Keras takes seconds: --help and a wrong setting need not wait

    if settings.rerank_inliers:
        from landmarks.local_features import decision

        decision.require(run, recipe.model, recipe.verification)
    files = ensemble.embed(run, recipe.embedding, mirror, ["test", "index"] + ["train"] * needs_train(recipe))
    if files is None:
        return
    added = growing.current(run, recipe.embedding)
    if added:
        files["index"] = [*files["index"], added.path]
        print(f"index: {len(added.landmark):,} photos that were added; scores of the mirror take them for wrong")
    neighbours = rank(recipe, mirror, files, added)
    if settings.rerank_inliers:
        everything = WithAdded(mirror, run.work)
        count = settings.rerank_inliers
        neighbours = decision.rerank(run, recipe.verification, everything, files, neighbours, count)
    submission_csv = run.work / "retrieval.csv"
    write_submission(mirror, neighbours, submission_csv)
    submissions.copy(submission_csv, run.submission)
    solution_csv = mirror.solution("retrieval")
    if solution_csv is None:
        print(f"{submission_csv} is not scored: the mirror has no retrieval solution")
        return
    alone = {one.run.recipe: score_alone(one, mirror, settings, solution_csv) for one in recipe.beside()}
    found = scores.write_scores("retrieval", submission_csv, solution_csv, run.work / "retrieval.metrics.json")
    scores.show("retrieval", found, alone)


def score_alone(recipe: Recipe, mirror: Mirror, settings: RetrievalSettings, solution_csv: Path) -> scores.Scores:
    """How the model beside does alone, ranked in the same way: what both together have to beat."""
    from landmarks.neighbours import ensemble

    one, work = recipe.model_copy(update={"retrieval": settings}), recipe.run.work
    files = ensemble.embed(one.run, one.embedding, mirror, ["test", "index"] + ["train"] * needs_train(one))
    assert files is not None  # both together have been ranked by them
    write_submission(mirror, rank(one, mirror, files), work / "retrieval.csv")
    return scores.write_scores("retrieval", work / "retrieval.csv", solution_csv, work / "retrieval.metrics.json")


def needs_train(recipe: Recipe) -> bool:
    """Whether train photos tell the landmarks by which neighbours are brought nearer."""
    return recipe.retrieval.rerank and recipe.recognition.recognizer != "head"


def rank(recipe: Recipe, mirror: Mirror, files: dict[str, list[Path]], added: "Added | None" = None) -> "Neighbours":
    """The index photos nearest to each test photo, those with its landmark brought nearer."""
    neighbours = find(recipe.run, recipe.retrieval, files)
    if recipe.retrieval.rerank:
        neighbours = bring_nearer(recipe.retrieval, neighbours, *labels(recipe, mirror, files, added))
    return neighbours


def find(run: RunSettings, settings: RetrievalSettings, files: dict[str, list[Path]]) -> "Neighbours":
    """The index photos nearest to each test photo, as many as are needed, by the settings that need embeddings."""
    from landmarks.neighbours import approximate, distributed, expansion, neighbourhood

    queries, index, parts = files["test"], files["index"], run.index_parts
    exact = distributed.chosen(run.cluster)
    if settings.database_augmentation:
        folder = run.work / "expanded/index"
        index = expansion.expand(index, index, folder, settings.database_augmentation, parts=parts, search=exact)
    if settings.query_expansion:
        folder = run.work / "expanded/test"
        queries = expansion.expand(queries, index, folder, settings.query_expansion, parts=parts, search=exact)
    by_neighbours = settings.rerank_neighbours != "none"
    depth = max(
        submissions.MAX_NEIGHBOURS, settings.rerank * settings.rerank_depth, by_neighbours * settings.neighbours_depth
    )
    found = approximate.chosen(run)(queries, index, depth, parts, keep=run.work / "neighbours/test-in-index")
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
        settings.reciprocal_count, settings.reciprocal_expansion, settings.reciprocal_weight, parts, exact,
    )  # fmt: skip


def labels(
    recipe: Recipe, mirror: Mirror, files: dict[str, list[Path]], added: "Added | None" = None
) -> "list[pd.DataFrame]":
    """The `landmark` of all test and all index photos, by id, and how sure it is (`score`): as the recognizer has them.

    Of votes that is their power mean, so that it is a similarity, however many vote with whatever power; `soft`
    re-ranking is published with the landmark and the cosine of the nearest train photo alone.
    """
    from landmarks.neighbours import approximate, voting
    from landmarks.training.selection import voters

    run, settings = recipe.run, recipe.recognition
    if settings.recognizer == "head":
        return [voting.head(files[split]) for split in ("test", "index")]
    votes, power = settings.votes, settings.vote_power
    if settings.recognizer == "centres" or recipe.retrieval.rerank_by == "soft":
        votes, power = 1, 1.0
    voting_photos = voters(settings.vote_all, recipe.photos, mirror, run.folders[0])
    gallery = voting.gallery(settings.recognizer, files["train"], voting_photos, run.work)
    if added:
        from landmarks.neighbours import growing

        gallery = growing.voting(added, settings.recognizer, *gallery)
    found, by = [], approximate.chosen(run)
    for split in ("test", "index"):
        keep = run.work / f"neighbours/{split}-by-{settings.recognizer}"
        found.append(voting.recognise(files[split], *gallery, votes, power, run.index_parts, keep, by))
    return [one.assign(score=(one["score"].clip(lower=0) / votes) ** (1 / power)) for one in found]


def bring_nearer(
    settings: RetrievalSettings, neighbours: "Neighbours", of_queries: "pd.DataFrame", of_index: "pd.DataFrame"
) -> "Neighbours":
    """Re-rank: neighbours with the query's landmark come nearer, by what `labels` says of both."""
    from landmarks.neighbours import rerank

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


def write_submission(mirror: Mirror, neighbours: "Neighbours", path: Path) -> None:
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
