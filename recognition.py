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
from files import whole
from mirror import Mirror, open_mirror


def main() -> None:
    recipe = recipes.load(sys.argv[1:])
    command.prepare_backend()
    if recipe.time_limit:
        command.limit_time(recipe.time_limit)
    mirror = open_mirror(recipe.mirror, recipe.work / "mirror", recipe.ahead, recipe.strict_md5, recipe.seed)
    mirror.require("train", "test")
    recipes.keep(recipe)

    import features  # imports Keras, which takes seconds that --help and a wrong setting need not wait for

    model, landmarks = trained_model(recipe, mirror)
    files = features.embed(model, landmarks, recipe, mirror, "test")
    if files is None:
        return
    submission_csv = recipe.work / "recognition.csv"
    write_submission(mirror, files, submission_csv)
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
        landmarks = training.select_classes(mirror.train(), recipe.min_images, recipe.exclude)
        with whole(labels) as part:
            pd.DataFrame({"class": np.arange(len(landmarks)), "landmark_id": landmarks}).to_csv(part, index=False)
        models.save(training.train(recipe, mirror, landmarks), path)
        (recipe.work / "checkpoint.keras").unlink(missing_ok=True)
    return models.load(path), models.load_labels(labels)


def write_submission(mirror: Mirror, files: list[Path], path: Path) -> None:
    """One row for each test photo: its landmark and score, or nothing where it could not be read."""
    import features
    import submission

    landmarks: dict[str, int] = {}
    scores: dict[str, float] = {}
    for part in map(features.load_features, files):  # one in memory at a time: all embeddings would be half a GB
        landmarks.update(zip(part.ids.tolist(), part.landmark.tolist(), strict=True))
        scores.update(zip(part.ids.tolist(), part.score.tolist(), strict=True))
    submission.write_recognition(path, mirror.ids("test"), landmarks, scores)
    print(f"{path}: {len(landmarks):,} predictions")


if __name__ == "__main__":
    command.run(main)
