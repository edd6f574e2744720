"""A finished work folder without a model: what scripts leave that a page tells of, in the blink of an eye."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from landmarks.mirrors.folder import FolderMirror
from landmarks.report import work_folder
from landmarks.running.features_file import Features, concatenate, save_features
from landmarks.running.recipe import Recipe
from landmarks.scoring import scores, submissions

NAMES = {  # of landmarks
    10: '<script>alert("10")</script> & Co.',
    20: "קתדרלת <b>שלום</b> 20",  # from right to left
    30: "A name of more letters than a card has room for, which goes on and on " * 3,
}
SKIPPED: list[list] = [["split", "shard", "name", "reason"], ["train", "images_001", "ab<i>c", "truncated, at 9 bytes"]]
HISTORY: list[list] = [
    ["began", "seconds", "ended", "command", "versions"],
    ["2026-01-01T10:00:00+01:00", "3725", "finished", "python recognition.py --work work", "Python 3.12"],
]
TRAINING: list[list] = [["mini_epoch", "loss", "nearest_photo_gap"], [1, 3.0, 0.5], [2, 2.0, 0.6], [3, 1.5, 0.7]]
START = {"photos": 40, "trained": 0.9, "start": 0.8, "gain": 0.1, "standard_error": 0.02, "verdict": "training paid"}


def finish(recipe: Recipe, noise: float = 0.45) -> Path:
    """Fill the work folder of a recipe, whose mirror is `conftest.make_mirror`'s, as if all stages had run.

    Embeddings tell landmarks apart but for `noise`, so that some answers are wrong.
    """
    work, mirror = recipe.run.work, FolderMirror(Path(recipe.source.mirror))
    recipe.keep()
    landmark_of = _landmarks(mirror)
    rng = np.random.default_rng(0)
    found: dict[str, Features] = {}
    for split in ("train", "index", "test"):
        parts = []
        for shard in mirror.stream(split, mirror.shard_names(split)):
            embeddings = np.eye(4)[[landmark_of.get(one, 0) // 10 for one in shard.ids]]
            embeddings += noise * rng.standard_normal(embeddings.shape)
            embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
            parts.append(Features(np.array(shard.ids), embeddings.astype(np.float32)))
            save_features(recipe.run.features / split / f"{shard.name}.npz", parts[-1])
        found[split] = concatenate(parts)
    test, train, index = (found[split] for split in ("test", "train", "index"))
    ids, near = test.ids.tolist(), test.embeddings @ train.embeddings.T
    landmark = np.array([landmark_of[one] for one in train.ids])
    said = dict(zip(ids, landmark[near.argmax(axis=1)].tolist(), strict=True))
    score = dict(zip(ids, near.max(axis=1).clip(0, 1).tolist(), strict=True))
    order = np.argsort(-test.embeddings @ index.embeddings.T, axis=1)
    submissions.write_recognition(work / "recognition.csv", ids, said, score)
    submissions.write_retrieval(work / "retrieval.csv", ids, index.ids[order].tolist())
    for task in ("recognition", "retrieval"):
        solution = mirror.solution(task)
        assert solution is not None
        scores.write_scores(task, work / f"{task}.csv", solution, work / f"{task}.metrics.json")
    files = np.array([path.name for path in sorted((recipe.run.features / "train").glob("*.npz"))])
    np.savez(work / "gallery.npz", files=files, landmark=landmark, weight=0.0, calibrated=True, made_from="")
    tables: dict[str, list[list]] = {
        "train_label_to_category.csv": [["landmark_id", "category"], *map(list, NAMES.items())],
        "labels.csv": [["class", "landmark_id"], [0, 10], [1, 20], [2, 30]],
        "training.csv": TRAINING, "skipped.csv": SKIPPED, "runs.csv": HISTORY,
    }  # fmt: skip
    for name, (head, *rows) in tables.items():
        pd.DataFrame(rows, columns=head).to_csv(work / name, index=False)
    (work / "start.json").write_text(json.dumps(START))
    verified = pd.DataFrame({"id": ids[:2], "landmark": [said[one] for one in ids[:2]], "inliers": [36, 70]})
    verified.to_csv(work / "verification.csv", index=False)
    (work / "report/verification").mkdir(parents=True)
    Image.new("RGB", (200, 100), "grey").save(work / f"report/verification/{ids[1]}.png")
    return work


def gathered(recipe: Recipe, **given: Path) -> work_folder.Run:
    """What a page tells of a work folder; `given`: solutions by task."""
    settings = recipe.model_dump(mode="json")
    return work_folder.gather(recipe.run, recipe.source, recipe.training.seed, settings, given)


def _landmarks(mirror: FolderMirror) -> dict[str, int]:
    """The landmark of every photo that shows one, by id, as train.csv and the solutions tell it."""
    recognition, retrieval = (
        pd.read_csv(path, dtype=str) for task in ("recognition", "retrieval") if (path := mirror.solution(task))
    )
    recognition = recognition.dropna()
    shown = dict(zip(recognition["id"], recognition["landmarks"].astype(int), strict=True))
    scored = retrieval[retrieval["Usage"] != "Ignored"]
    for query, images in zip(scored["id"], scored["images"], strict=True):
        shown |= dict.fromkeys(images.split(" "), shown[query])
    return shown | mirror.train().set_index("id")["landmark_id"].to_dict()
