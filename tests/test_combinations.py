"""Several models together, photos of no landmark, expansion and local features, on what a small run has made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_run import run, times

from landmarks.running.features_file import load_features, save_features


def test_two_models_together(finished, tiny_mirror, tmp_path):
    """Embeddings at random in place of the models' own, which are nearly alike for all photos."""
    rng = np.random.default_rng(0)
    models, embeddings = [tmp_path / name for name in "AB"], []
    for work in models:
        shutil.copytree(finished, work)
        embeddings.append({})
        for path in sorted(work.glob("features/*/*.npz")):
            features = load_features(path)
            random = rng.standard_normal(features.embeddings.shape)
            random /= np.linalg.norm(random, axis=1, keepdims=True)
            save_features(path, features._replace(embeddings=random.astype(np.float16)))
            embeddings[-1] |= dict(zip(features.ids.tolist(), random, strict=True))
    run("recognition.py", Path(f"{models[0]},{models[1]}"), "--model-weights=2,1", "--no-calibrate")
    together = tmp_path / "A+B"
    run("retrieval.py", together, "--no-rerank")

    def similarity(photos, others):
        own = [np.array([one[i] for i in photos]) @ np.array([one[i] for i in others]).T for one in embeddings]
        return (4 * own[0] + own[1]) / 5

    train = pd.read_csv(tiny_mirror / "metadata/train.csv")
    said = pd.read_csv(together / "recognition.csv").set_index("id")["landmarks"].str.split(" ", expand=True)
    nearest = similarity(said.index, train["id"])
    assert said[0].astype(int).tolist() == train["landmark_id"].to_numpy()[nearest.argmax(axis=1)].tolist()
    np.testing.assert_allclose(said[1].astype(float), nearest.max(axis=1), atol=1e-3)
    index = np.array(sorted(pd.read_csv(tiny_mirror / "metadata/index.csv")["id"]))
    found = pd.read_csv(together / "retrieval.csv").set_index("id")["images"].str.split(" ", expand=True)
    np.testing.assert_array_equal(found, index[np.argsort(-similarity(found.index, index), axis=1)])
    for task in ("recognition", "retrieval"):
        assert json.loads((together / f"{task}.metrics.json").read_text())["private"]


def test_a_model_beside_the_trained_one(finished, tiny_mirror, tmp_path):
    work, other = tmp_path / "work", tmp_path / "still.toml"
    shutil.copytree(finished, work)
    made = times(work)
    other.write_text(
        'backbone = "Tiny"\nweights = "none"\nimage_size = 48\ncrop = 1.0\nloss = "none"\nwhitening = "lda"\n'
        "mirrored = false\nmin_images = 5\n"
    )
    with_it = [f"--beside={other}", "--model-weights=1,2", "--no-calibrate"]
    done = run("recognition.py", work, *with_it)
    assert f"{other} public  {other} private" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert (work / "beside/labels.csv").read_text() == (work / "labels.csv").read_text()  # of the same photos
    assert (work / "beside/whitening.npz").exists() and not (work / "beside/training.csv").exists()
    run("retrieval.py", work, "--no-rerank")  # the work folder knows of it

    def similarity(split):
        by_folder = []
        for folder in (work, work / "beside"):
            files = [load_features(path) for path in sorted(folder.glob(f"features/{split}/*.npz"))]
            photos = np.concatenate([one.embeddings for one in files]).astype(np.float64)
            queries = np.concatenate(
                [load_features(path).embeddings for path in sorted(folder.glob("features/test/*.npz"))]
            )
            photos, queries = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (photos, queries))
            by_folder.append(queries @ photos.T)
        return (by_folder[0] + 4 * by_folder[1]) / 5

    said = pd.read_csv(work / "recognition.csv").set_index("id")["landmarks"].str.split(" ", expand=True)
    np.testing.assert_allclose(said[1].astype(float), similarity("train").max(axis=1), atol=2e-3)
    assert len(list(work.glob("together/index/*.npz"))) == len(list(work.glob("features/index/*.npz")))
    for task, more in {"recognition": ["--no-calibrate"], "retrieval": ["--no-rerank"]}.items():
        beside = {name: (work / f"beside/{task}.{name}").read_bytes() for name in ("csv", "metrics.json")}
        run(f"{task}.py", work / "beside", f"--mirror={tiny_mirror}", *more)  # alone, it says the same
        assert beside == {name: (work / f"beside/{task}.{name}").read_bytes() for name in beside}

    refused = run("recognition.py", work, "--beside=small-frozen", check=False)
    assert refused.returncode == 2 and f"beside was begun with the recipe {other}" in refused.stderr
    shutil.copytree(finished, tmp_path / "third")
    run("recognition.py", Path(f"{work},{tmp_path / 'third'}"), "--no-calibrate")
    assert load_features(next((tmp_path / "work+third").glob("features/test/*.npz"))).embeddings.shape[1] == 3 * 8


def test_non_landmarks_of_a_file_and_expansion(finished, tiny_mirror, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    table = pd.read_csv(tiny_mirror / "ground_truth/recognition_solution_v2.1.csv", keep_default_na=False)
    private = table[(table["Usage"] == "Private") & (table["landmarks"] != "")].set_index("id")["landmarks"]
    others = [pd.read_csv(tiny_mirror / f"metadata/{split}.csv")["id"].iloc[0] for split in ("train", "index")]
    (tmp_path / "ids").write_text("\n".join([private.index[0], *others]))
    run("recognition.py", work, "--penalty=winners", f"--non-landmarks={tmp_path / 'ids'}")
    said = pd.read_csv(work / "recognition.csv").set_index("id")["landmarks"].str.split(" ", expand=True)
    assert len(said) == len(table)
    right = (said[0] == private.reindex(said.index))[private.index[1:]]
    scores = json.loads((work / "recognition.metrics.json").read_text())
    assert scores["private"]["top1"] == pytest.approx(right.mean())

    expand = ["--query-expansion=2", "--database-augmentation=2"]
    run("retrieval.py", work, "--rerank-by=insert", *expand)
    made = {path: path.stat().st_mtime_ns for path in work.glob("expanded/*/*.npz")}
    assert {path.parent.name for path in made} == {"test", "index"}
    run("retrieval.py", work, "--no-rerank", *expand)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    index_ids = set(pd.read_csv(tiny_mirror / "metadata/index.csv")["id"])
    for cell in pd.read_csv(work / "retrieval.csv")["images"]:
        assert set(cell.split(" ")) == index_ids


def test_verification_by_local_features(finished, tmp_path):
    """Of photos that are too small to have any: so none has an inlier."""
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    before = pd.read_csv(work / "retrieval.csv")
    local = ["--extractor=sift", "--local-points=50"]
    run("recognition.py", work, "--verify=lower", "--inlier-weight=1", "--comparisons=3", "--no-calibrate", *local)
    lowered = pd.read_csv(work / "recognition.csv")["landmarks"].str.split(" ", expand=True)
    assert set(lowered[0].astype(int)) <= {10, 20, 30} and set(lowered[1].astype(float)) == {0}
    verified = pd.read_csv(work / "verification.csv")
    assert verified["compared"].tolist() == [3] * len(verified) and (verified["inliers"] == 0).all()
    run("recognition.py", work, "--verify=lower", "--inlier-weight=1", "--comparisons=3", "--calibrate", *local)
    sure = pd.read_csv(work / "recognition.csv")["landmarks"].str.split(" ", expand=True)[1].astype(float)
    assert sure.nunique() == 1 and 0 < sure[0] < 1
    done = run("recognition.py", work, "--verify=none", "--comparisons=3", *local)
    assert "0 of 10 predictions have more than 35 inliers" in done.stdout
    assert pd.read_csv(work / "recognition.csv")["landmarks"].isna().all()
    assert json.loads((work / "recognition.metrics.json").read_text())["private"]["gap"] == 0

    run("retrieval.py", work, "--verify=off", "--rerank-inliers=5", *local)
    assert {path.parent.name for path in work.glob("local/sift/*/*.npz")} == {"index", "test", "train"}
    pd.testing.assert_frame_equal(pd.read_csv(work / "retrieval.csv"), before)
