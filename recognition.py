"""Which landmark does each test photo show, and how sure is that? Train, predict, write and score the submission.

    python recognition.py [--recipe NAME|FILE.toml] [--mirror sample|URL|DIR] [--work DIR|A,B] [settings...]

`--help` names every setting. The same command goes on where an earlier run was stopped. With `--work A,B` the models of
two finished work folders, or more, recognise together.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

import command
import metrics
import nonlandmarks
import recipe as recipes
import submission
from files import make_writable, whole
from mirror import Mirror, open_mirror
from nonlandmarks import References
from selection import train_photos
from settings import Recipe


def main() -> None:
    recipe = recipes.load(sys.argv[1:])
    if recipe.time_limit:
        command.limit_time(recipe.time_limit)
    make_writable(recipe.work)
    mirror = open_mirror(recipe.mirror, recipe.work / "mirror", recipe.ahead, recipe.strict_md5, recipe.seed)
    mirror.require("train", "test")
    references = nonlandmarks.references(recipe.non_landmarks, mirror)

    command.prepare_backend()
    import ensemble  # Keras takes seconds, which --help and a wrong setting need not wait for

    if recipe.verify != "off":
        import verification

        verification.require(recipe)  # before training, not after it
    recipes.keep(recipe)
    if not recipe.models:
        train_model(recipe, mirror)
    splits = ["test"] if recipe.recognizer == "head" and recipe.verify == "off" else ["test", "train"]
    splits += [split for group in references for split in group.splits if split not in splits]
    files = ensemble.embed(recipe, mirror, splits)
    if files is None:
        return
    references = at_hand(recipe, mirror, files, references)
    found = predict(recipe, mirror, files, references)
    if recipe.verify != "off":
        found = verification.verify(recipe, mirror, files, found)
    submission_csv = recipe.work / "recognition.csv"
    submission.write_recognition(
        submission_csv, mirror.ids("test"), found["landmark"].to_dict(), found["score"].to_dict()
    )
    print(f"{submission_csv}: {len(found):,} predictions")
    metrics.write_scores(
        "recognition",
        submission_csv,
        mirror.solution("recognition"),
        recipe.work / "recognition.metrics.json",
        references=references,
    )


def train_model(recipe: Recipe, mirror: Mirror) -> None:
    """Train the model in the work folder, or train it further, unless it is finished."""
    import model as models
    import training
    import validation

    path = recipe.work / "model.keras"
    if not path.exists():
        photos = train_photos(recipe, mirror)
        landmarks = training.select_classes(photos, recipe.min_images, recipe.exclude)
        with whole(recipe.work / "labels.csv") as part:
            pd.DataFrame({"class": np.arange(len(landmarks)), "landmark_id": landmarks}).to_csv(part, index=False)
        model = training.train(recipe, mirror, photos, landmarks)
        shutil.rmtree(recipe.work / "features", ignore_errors=True)  # of a model that was here before
        (recipe.work / "delf.keras").unlink(missing_ok=True)
        models.save(model, path)
        for name in ("checkpoint.keras", "best.keras"):
            (recipe.work / name).unlink(missing_ok=True)
        validation.clear(recipe.work)


def at_hand(
    recipe: Recipe, mirror: Mirror, files: dict[str, list[Path]], references: list[References]
) -> list[References]:
    """The references, with photos far from every landmark where the mirror names none; empty without any."""
    import penalty

    found = []
    for group in references:
        if group.ids is None:
            group = penalty.find_far(group, files, mirror.train(), recipe.index_parts, recipe.work / "penalty")
        found.append(group)
    if not all(group.ids for group in found):
        print("no photos of no landmark are at hand: no penalty is taken")
        return []
    return found


def predict(recipe: Recipe, mirror: Mirror, files: dict[str, list[Path]], references: list[References]) -> pd.DataFrame:
    """The `landmark` and `score` of every test photo that could be read, by id.

    Args:
        files: the features of each split that is needed.
        references: the photos of no landmark that the setting `penalty` takes.
    """
    import rerank
    import voting

    if recipe.recognizer == "head":
        found = voting.head(files["test"])
    else:
        found = predict_by_similarity(recipe, mirror, files, references)
    if recipe.most_predicted:
        found["score"] = rerank.frequent_as_nonlandmark(
            found["landmark"].to_numpy(), found["score"].to_numpy(), recipe.most_predicted
        )
    return found


def predict_by_similarity(
    recipe: Recipe, mirror: Mirror, files: dict[str, list[Path]], references: list[References]
) -> pd.DataFrame:
    """As `predict`, by the nearest train photos or class centres: vote, blend with the head, penalty."""
    import penalty
    import selection
    import voting

    how = penalty.penalty(recipe.penalty, recipe.votes, recipe.vote_power)
    train_files, train = voting.gallery(recipe, mirror, files["train"])
    kept = recipe.work / "neighbours"
    keep = kept / f"test-by-{recipe.recognizer}"
    neighbours, train_landmark = voting.nearest(files["test"], train_files, train, how.depth, recipe.index_parts, keep)
    head = voting.head_scores(files["test"]) if recipe.blend else None
    if not references:
        landmark, score = voting.vote(neighbours, train_landmark, how.votes, how.power, head, recipe.blend)
        return pd.DataFrame({"landmark": landmark, "score": score}, index=neighbours.query_ids)
    served = []
    for number, group in enumerate(references):
        path = recipe.work / "non_landmarks.npz"
        nonlandmarks.write_features([file for split in group.splits for file in files[split]], group.ids, path)
        weight = recipe.penalty_weight or penalty.choose_weight(
            how, files["train"], selection.voters(recipe, mirror), path, recipe.index_parts, recipe.work / "penalty"
        )
        of_train = None
        if how.of_train:
            of_train = penalty.likeness(train_files, path, how.of_train, kept / f"train-in-nonlandmarks-{number}")
        of_test = penalty.likeness(files["test"], path, how.of_queries, kept / f"test-in-nonlandmarks-{number}")
        found = penalty.penalise(neighbours, train_landmark, how, weight, of_test, of_train, head, recipe.blend)
        served.append(found[found.index.isin(group.serve)])
    return pd.concat(served)


if __name__ == "__main__":
    command.run(main)
