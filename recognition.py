"""Which landmark does each test photo show, and how sure is that? Train, predict, write and score the submission.

    python recognition.py [--recipe NAME|FILE.toml] [--mirror sample|URL|DIR] [--work DIR|A,B] [settings...]

`--help` names every setting. The same command goes on where an earlier run was stopped. With `--work A,B` the models of
two finished work folders, or more, recognise together. Photos that `retrieval.py add` brought do not vote here, since
they may be test photos, and scores and their calibration are those of the mirror; identify.py lets them vote.
"""

import shutil
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from landmarks.cluster import work_copy
from landmarks.mirrors.base import Mirror
from landmarks.report import ending, tracking
from landmarks.running import command
from landmarks.running import recipe as recipes
from landmarks.running.command import InputError
from landmarks.running.files import make_writable, whole
from landmarks.running.history import noted
from landmarks.running.locks import held
from landmarks.running.recipe import Recipe
from landmarks.running.said import size_of, time_of
from landmarks.scoring import scores, solutions, submissions

if TYPE_CHECKING:
    import pandas as pd

    from landmarks.neighbours.nonlandmarks import References
    from landmarks.neighbours.probability import Curve

LOST_HOST = (
    "the hosts broke off, since one of them was lost, did not come within five minutes or cannot be reached: the last "
    "checkpoint is kept, and the same command, on all hosts, goes on from there"
)


def main() -> None:
    recipe = recipes.load(work_copy.fetched(sys.argv[1:]))
    run = recipe.run
    if run.time_limit:
        command.limit_time(run.time_limit)
    make_writable(run.work)
    if run.submission:
        make_writable(Path(run.submission).parent)
    if run.hosts and not is_first(recipe):
        return
    check(recipe)
    with held(run.work, *run.folders), work_copy.kept(run.work, run.store):
        with noted(run.work):
            recognise(recipe)
        ending.keep(run, recipe.source, recipe.training.seed, recipe.model_dump(mode="json"), "recognition")


def is_first(recipe: Recipe) -> bool:
    """Train with other hosts, in a process of its own, which falls with any of them; and whether this is the first."""
    from landmarks.running import apart

    try:
        number = apart.run(train_together, recipe)
    except apart.Died as died:
        if "JAX distributed service" not in str(died):  # whose way it is to end where it hears no more of a host
            print(died, file=sys.stderr)
        raise InputError(LOST_HOST) from died
    if number:
        print(f"host {number} is done: the model is trained, and host 0 goes on")
    return not number


def train_together(recipe: Recipe) -> int:
    """This host's part in the training, up to the last checkpoint of each model, which host 0 has; its number."""
    command.prepare_backend()
    from landmarks.networks import hosts

    hosts.join(recipe.run.hosts)
    own = Path("hosts", str(hosts.number)) if hosts.number else Path()  # within a work folder, which hosts may share
    folders, store = [folder / own for folder in recipe.run.folders], "" if hosts.number else recipe.run.store
    with hosts.lost(LOST_HOST):
        check(recipe)
        for one in [recipe, *recipe.beside()]:
            hosts.require_alike("settings", {"beside": one.run.beside, **one.fixed()})
        with held(*folders), work_copy.kept(recipe.run.work, store), noted(folders[0]):
            train_models(recipe, folders)
        hosts.leave()
    for folder in folders if hosts.number else ():
        shutil.rmtree(folder)
    return hosts.number


def train_models(recipe: Recipe, folders: list[Path]) -> None:
    """With the other hosts, each model in a folder of this one's."""
    from landmarks.mirrors.open import open_mirror
    from landmarks.networks import hosts
    from landmarks.training.run import train
    from landmarks.training.selection import learnt

    mirror = open_mirror(recipe.source.mirror, folders[0] / "mirror", recipe.training.seed, recipe.source)
    mirror.require("train", "test")
    for one, folder in zip([recipe, *recipe.beside()], folders, strict=True):
        one = one.model_copy(update={"run": one.run.model_copy(update={"work": folder})})
        one.keep()
        if hosts.of_all(one.model.loss == "none" or (folder / "model.keras").exists())[0]:
            continue
        train(one.run, one.model, one.training, mirror, *learnt(one.photos, mirror, one.run.work))


def recognise(recipe: Recipe) -> None:
    """The whole job, with the work folder to itself."""
    from landmarks.mirrors.open import open_mirror  # pandas and Keras take seconds, which --help need not wait for
    from landmarks.neighbours import nonlandmarks, penalty

    run, verifies = recipe.run, recipe.verification.verify != "off"
    by_head = recipe.recognition.recognizer == "head"
    calibrates = recipe.recognition.calibrate and not by_head  # which has learnt every landmark: none can be unknown
    mirror = open_mirror(recipe.source.mirror, run.work / "mirror", recipe.training.seed, recipe.source)
    mirror.require("train", "test")
    references = nonlandmarks.references(recipe.recognition.non_landmarks, mirror)
    none = nonlandmarks.listed(mirror) if calibrates else None
    foretell(recipe, mirror)
    for one in [recipe, *recipe.beside()]:
        one.keep()
        if not run.models:
            train_model(one, mirror)
            whiten(one, mirror)
    splits = ["test"] if by_head and not verifies else ["test", "train"]
    splits += [split for group in [*references, *filter(None, [none])] for split in group.splits]
    from landmarks.neighbours import ensemble, gallery, growing

    files = ensemble.embed(run, recipe.embedding, mirror, list(dict.fromkeys(splits)))
    if files is None:
        return
    references = nonlandmarks.located(references, files, mirror.train(), run.index_parts, run.work / "penalty")
    if references:
        references = penalty.weighed(recipe.recognition, run, files, voters_of(recipe, mirror), references)
    found = predict(recipe, mirror, files, references)
    if verifies:
        from landmarks.local_features import decision

        found = decision.verify(run, recipe.verification, mirror, files, found)
    curve = calibrate(recipe, mirror, files, references, none) if calibrates else None
    if curve is not None:
        found = found.assign(score=curve.of(found["score"].to_numpy()))
    submission_csv, solution_csv = run.work / "recognition.csv", mirror.solution("recognition")
    submissions.write_recognition(
        submission_csv, mirror.ids("test"), found["landmark"].to_dict(), found["score"].to_dict()
    )
    print(f"{submission_csv}: {len(found):,} predictions")
    submissions.copy(submission_csv, run.submission)
    gallery.keep(
        run, ensemble.members(run, recipe.embedding), recipe.recognition, recipe.verification,
        files.get("train", []), voters_of(recipe, mirror), references, curve is not None,
    )  # fmt: skip
    gallery.keep_names(mirror, run.work)
    growing.current(run, recipe.embedding)  # a model that was trained anew sees the photos that were added before
    if solution_csv is None:
        print(f"{submission_csv} is not scored: the mirror has no recognition solution")
        return
    unscored = nonlandmarks.serving_themselves(references)
    alone = {one.run.recipe: score_alone(one, mirror, solution_csv, unscored) for one in recipe.beside()}
    for task in ["recognition"] + ["calibration"] * (curve is not None):
        path = run.work / f"{task}.metrics.json"
        found_scores = scores.write_scores(task, submission_csv, solution_csv, path, unscored=unscored)
        scores.show(task, found_scores, alone if task == "recognition" else {})


def check(recipe: Recipe) -> None:
    """Say what is wrong with any setting before there is any work: no sample is rendered, nothing downloaded.

    Raises InputError. What only the photos can tell, like a landmark with too few of them, comes later.
    """
    from landmarks.cluster import tasks
    from landmarks.mirrors.open import require_place
    from landmarks.neighbours import nonlandmarks

    run, source = recipe.run, recipe.source
    require_place(source.mirror)
    tracking.require(run.track)
    tasks.require(run.cluster)
    nonlandmarks.check(recipe.recognition.non_landmarks)
    if source.solution:
        solutions.read_recognition_solution(Path(source.solution))
    command.prepare_backend()
    if run.devices != "1" or run.hosts:
        from landmarks.networks import devices

        made = [recipes.of(folder) for folder in run.models] or [recipe, *recipe.beside()]
        devices.share("all" if run.hosts else run.devices, [one.divisible() for one in made])
    if recipe.embedding.engine != "keras":
        from landmarks.networks import engines

        engines.require(recipe.embedding.engine)
    if recipe.verification.verify != "off":
        from landmarks.local_features import decision

        decision.require(run, recipe.model, recipe.verification)
    for one in [] if run.models else [recipe, *recipe.beside()]:
        if one.is_new():
            from landmarks.networks import backbones
            from landmarks.training import selection

            selection.check(one.photos, one.run.work)
            embedding = one.embedding
            backbones.check(one.model, embedding.sizes(one.model.image_size), embedding.inner_layers)


def foretell(recipe: Recipe, mirror: Mirror) -> None:
    """Say what a first run, of this script and retrieval.py, will take: time on this machine, and disk."""
    from landmarks.networks.devices import accelerated
    from landmarks.training.forecast import forecast, needs
    from landmarks.training.selection import learnt

    new = [] if recipe.run.models else [one for one in [recipe, *recipe.beside()] if one.is_new()]
    if not new:
        return
    photos, landmarks = learnt(recipe.photos, mirror, recipe.run.work)
    count = int(photos["landmark_id"].isin(landmarks).sum())
    seen = sum(len(mirror.ids(split)) for split in ("train", "index", "test") if mirror.shard_names(split))
    counts, parts = (count, len(landmarks), seen, len(mirror.shard_names("train"))), []
    for one in new:
        found = needs(one.model, one.training, one.embedding, *counts, bool(one.run.beside), accelerated())
        how = one.model.image_size, one.training.batch_size, one.embedding.engine
        parts.append(forecast(found, seen, *how))
    training, embedding, disk = map(sum, zip(*parts, strict=True))
    trains = f"{time_of(training)} to train on {count:,} photos and " if training else ""
    print(f"this will take about {trains}{time_of(embedding)} to embed {seen:,}, and {size_of(disk)} of disk")


def train_model(recipe: Recipe, mirror: Mirror) -> None:
    """Train the model in the work folder, or train it further, unless it is finished."""
    import numpy as np
    import pandas as pd

    import model as models
    from landmarks.training import validation
    from landmarks.training.run import CHECKPOINTS, train
    from landmarks.training.selection import learnt

    work = recipe.run.work
    path = work / "model.keras"
    if not path.exists():
        photos, landmarks = learnt(recipe.photos, mirror, work)
        with whole(work / "labels.csv") as part:
            pd.DataFrame({"class": np.arange(len(landmarks)), "landmark_id": landmarks}).to_csv(part, index=False)
        if recipe.model.loss == "none":
            model = models.build_model(len(landmarks), recipe.model)
        else:
            needs_head = recipe.recognition.recognizer == "head" or recipe.recognition.blend > 0
            model = train(
                recipe.run, recipe.model, recipe.training,
                mirror, photos, landmarks, needs_head, recipe.embedding.whitening,
            )  # fmt: skip
        shutil.rmtree(work / "features", ignore_errors=True)  # of a model that was here before
        (work / "delf.keras").unlink(missing_ok=True)
        models.save(model, path)
        for name in (*CHECKPOINTS, "best.keras"):
            (work / name).unlink(missing_ok=True)
        validation.clear(work)


def whiten(recipe: Recipe, mirror: Mirror) -> None:
    """Find the whitening of the model, from the photos that were learnt, where that is wanted and not done."""
    if recipe.embedding.whitening == "none":
        return
    from landmarks.neighbours import ensemble
    from landmarks.training.selection import learnt

    work = recipe.run.work
    photos, landmarks = learnt(recipe.photos, mirror, work)
    ensemble.whiten(work, recipe.embedding, mirror, photos[photos["landmark_id"].isin(landmarks)], recipe.run.cluster)


def predict(
    recipe: Recipe, mirror: Mirror, files: dict[str, list[Path]], references: "list[References]"
) -> "pd.DataFrame":
    """The `landmark` and `score` of every test photo that could be read, by id.

    Args:
        files: the features of each split that is needed.
        references: the photos of no landmark that the setting `penalty` takes, weighed.
    """
    from landmarks.neighbours import penalty, rerank, voting

    settings = recipe.recognition
    if settings.recognizer == "head":
        found = voting.head(files["test"])
    else:
        found = penalty.recognise(settings, recipe.run, files, voters_of(recipe, mirror), references)
    if settings.most_predicted:
        found["score"] = rerank.frequent_as_nonlandmark(
            found["landmark"].to_numpy(), found["score"].to_numpy(), settings.most_predicted
        )
    return found


def score_alone(recipe: Recipe, mirror: Mirror, solution_csv: Path, unscored: Collection[str]) -> scores.Scores:
    """How the model beside does alone, by its own recipe but without a penalty: what both together have to beat."""
    from landmarks.neighbours import ensemble

    files = ensemble.embed(recipe.run, recipe.embedding, mirror, ["test", "train"])
    assert files is not None  # both together have been predicted by them
    found, submission_csv = predict(recipe, mirror, files, []), recipe.run.work / "recognition.csv"
    submissions.write_recognition(
        submission_csv, mirror.ids("test"), found["landmark"].to_dict(), found["score"].to_dict()
    )
    path = recipe.run.work / "recognition.metrics.json"
    return scores.write_scores("recognition", submission_csv, solution_csv, path, unscored=unscored)


def voters_of(recipe: Recipe, mirror: Mirror) -> "pd.DataFrame":
    """`id` and `landmark_id` of the train photos that vote."""
    from landmarks.training.selection import voters

    return voters(recipe.recognition.vote_all, recipe.photos, mirror, recipe.run.folders[0])


def calibrate(
    recipe: Recipe,
    mirror: Mirror,
    files: dict[str, list[Path]],
    references: "list[References]",
    none: "References | None",
) -> "Curve | None":
    """The curve from scores to probabilities of being right, by photos whose truth is known; None if nothing tells it.

    Args:
        none: the photos of no landmark that the mirror names.
    """
    from landmarks.neighbours import probability
    from landmarks.training import validation

    verify = None
    if recipe.verification.verify != "off":
        from landmarks.local_features import calibration

        verify = partial(calibration.verify_known, recipe.run, recipe.verification, mirror)
    held_out = validation.learnt_by_none(recipe.run.folders, mirror, files["train"])
    return probability.calibrate(
        recipe.run, recipe.recognition, recipe.verification,
        files, voters_of(recipe, mirror), held_out, references, none, verify,
    )  # fmt: skip


if __name__ == "__main__":
    command.run(main)
