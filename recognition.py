"""Which landmark does each test photo show, and how sure is that? Train, predict, write and score the submission.

    python recognition.py [--recipe NAME|FILE.toml] [--mirror sample|URL|DIR] [--work DIR] [settings...]

`--help` names every setting. The same command goes on where an earlier run was stopped.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import command
import metrics
import recipe as recipes
import submission
from command import InputError
from files import make_writable, whole
from mirror import Mirror, open_mirror


def main() -> None:
    recipe = recipes.load(sys.argv[1:])
    if recipe.time_limit:
        command.limit_time(recipe.time_limit)
    make_writable(recipe.work)
    mirror = open_mirror(recipe.mirror, recipe.work / "mirror", recipe.ahead, recipe.strict_md5, recipe.seed)
    mirror.require("train", "test")
    recipes.keep(recipe)

    command.prepare_backend()
    import features  # Keras takes seconds, which --help and a wrong setting need not wait for

    model, class_landmarks = trained_model(recipe, mirror)
    files = features.embed(model, class_landmarks, recipe, mirror, "test")
    by_neighbours = recipe.recognizer == "neighbours"
    train_files = features.embed(model, class_landmarks, recipe, mirror, "train") if by_neighbours else []
    if files is None or train_files is None:
        return
    if by_neighbours:
        landmarks, scores = neighbours_predictions(recipe, mirror, files, train_files)
    else:
        landmarks, scores = head_predictions(files)
    submission_csv = recipe.work / "recognition.csv"
    submission.write_recognition(submission_csv, mirror.ids("test"), landmarks, scores)
    print(f"{submission_csv}: {len(landmarks):,} predictions")
    metrics.write_scores(
        "recognition", submission_csv, mirror.solution("recognition"), recipe.work / "recognition.metrics.json"
    )


def trained_model(recipe: recipes.Recipe, mirror: Mirror):
    """The model in the work folder and its landmark ids; trained now, or further, unless it is finished."""
    import model as models
    import training

    path = recipe.work / "model.keras"
    labels = recipe.work / "labels.csv"
    if not path.exists():
        photos = train_photos(recipe, mirror)
        landmarks = training.select_classes(photos, recipe.min_images, recipe.exclude)
        with whole(labels) as part:
            pd.DataFrame({"class": np.arange(len(landmarks)), "landmark_id": landmarks}).to_csv(part, index=False)
        models.save(training.train(recipe, mirror, photos, landmarks), path)
        (recipe.work / "checkpoint.keras").unlink(missing_ok=True)
    return models.load(path), models.load_labels(labels)


def train_photos(recipe: recipes.Recipe, mirror: Mirror) -> pd.DataFrame:
    """`id` and `landmark_id` of the photos to learn from: all, or the clean ones."""
    if not recipe.clean:
        return mirror.train()
    import cleaning

    own = recipe.clean == "true"
    path = mirror.path("metadata/train_clean.csv") if own else Path(recipe.clean)
    if path is None:
        raise InputError(f"--clean true: {mirror.name} has no metadata/train_clean.csv; make one with cleaning.py")
    return cleaning.read_clean(path)


def head_predictions(files: list[Path]) -> tuple[dict[str, int], dict[str, float]]:
    """What the model's head says of each photo: its landmark and score by id."""
    import features

    landmarks: dict[str, int] = {}
    scores: dict[str, float] = {}
    for part in map(features.load_features, files):  # one in memory at a time: all embeddings would be half a GB
        landmarks.update(zip(part.ids.tolist(), part.landmark.tolist(), strict=True))
        scores.update(zip(part.ids.tolist(), part.score.tolist(), strict=True))
    return landmarks, scores


def neighbours_predictions(
    recipe: recipes.Recipe, mirror: Mirror, files: list[Path], train_files: list[Path]
) -> tuple[dict[str, int], dict[str, float]]:
    """What the nearest train photos say of each photo: its landmark and score by id."""
    import voting

    found = voting.recognise(files, train_files, mirror.train(), recipe.votes, recipe.vote_power, recipe.index_parts)
    return found["landmark"].to_dict(), found["score"].to_dict()


if __name__ == "__main__":
    command.run(main)
