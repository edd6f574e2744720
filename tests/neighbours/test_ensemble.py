import os

import numpy as np
import pytest
import scripts
from conftest import ROOT

import features
from landmarks.neighbours import ensemble
from landmarks.neighbours.ensemble import join
from landmarks.networks import whitening as whitenings
from landmarks.running.features_file import Features, load_features, save_features
from landmarks.running.settings import EmbeddingSettings, RunSettings


def unit(rng, *shape):
    embeddings = rng.standard_normal(shape)
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


def write(folder, name, ids, embeddings):
    landmark = np.arange(len(ids))
    save_features(
        folder / f"{name}.npz",
        Features(np.array(ids, dtype=str), embeddings.astype(np.float16), landmark, landmark.astype(np.float32)),
    )
    return folder / f"{name}.npz"


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [2.0, 1.0, 0.5]])
def test_similarities_are_the_models_own_weighted_by_the_square(tmp_path, weights):
    rng = np.random.default_rng(0)
    ids = [f"photo{n}" for n in range(20)]
    models = [unit(rng, 20, dimension) for dimension in (8, 16, 5)]
    # A model's embeddings may have any length: they are normalised before they are weighted.
    files = [
        [write(tmp_path / f"model{n}", f"images_00{part}", ids[part::2], (n + 1) * model[part::2]) for part in range(2)]
        for n, model in enumerate(models)
    ]
    joined = join(files, weights, tmp_path / "together")
    assert joined == [tmp_path / "together/images_000.npz", tmp_path / "together/images_001.npz"]
    parts = [load_features(path) for path in joined]
    assert [part.ids.tolist() for part in parts] == [ids[0::2], ids[1::2]]
    assert all(part.embeddings.dtype == np.float16 and part.landmark is part.score is None for part in parts)
    found = np.concatenate([part.embeddings for part in parts]).astype(np.float64)
    own = [np.concatenate([model[0::2], model[1::2]]) for model in models]
    total = sum(weight**2 for weight in weights)
    expected = sum(weight**2 * model @ model.T for weight, model in zip(weights, own, strict=True)) / total
    np.testing.assert_allclose(found @ found.T, expected, atol=2e-3)


def test_only_photos_that_all_models_could_read(tmp_path):
    names = [["c", "a", "b"], ["b", "d", "c"], ["b", "c", "a"]]
    places = {"a": 0, "b": 1, "c": 2, "d": 3}
    files = [
        [write(tmp_path / str(n), "images_000", ids, np.eye(4)[[places[i] for i in ids]])]
        for n, ids in enumerate(names)
    ]
    (joined,) = join(files, [1.0, 1.0, 1.0], tmp_path / "together")
    found = load_features(joined)
    assert found.ids.tolist() == ["c", "b"]
    expected = [np.tile(np.eye(4)[places[i]], 3) / np.sqrt(3) for i in found.ids]
    np.testing.assert_allclose(found.embeddings, expected, atol=1e-3)

    none = [[write(tmp_path / f"none{n}", "images_000", [i], np.eye(2)[:1])] for n, i in enumerate("ab")]
    (joined,) = join(none, [1.0, 1.0], tmp_path / "none")
    assert load_features(joined).embeddings.shape == (0, 4)


def test_made_anew_only_when_a_model_or_a_weight_has_changed(tmp_path):
    rng = np.random.default_rng(0)
    files = [[write(tmp_path / name, "images_000", ["a", "b"], unit(rng, 2, 4))] for name in "AB"]
    (joined,) = join(files, [1.0, 1.0], tmp_path / "A+B")
    first, made = load_features(joined).embeddings, joined.stat().st_mtime_ns
    join(files, [1.0, 1.0], tmp_path / "A+B")
    assert joined.stat().st_mtime_ns == made
    joined.write_bytes(b"damaged")
    join(files, [1.0, 1.0], tmp_path / "A+B")
    np.testing.assert_array_equal(load_features(joined).embeddings, first)

    join(files, [1.0, 3.0], tmp_path / "A+B")
    weighted = load_features(joined).embeddings
    assert np.abs(weighted - first).max() > 0.01
    write(tmp_path / "B", "images_000", ["a", "b"], unit(rng, 2, 4))  # trained again
    os.utime(files[1][0], ns=(0, 0))  # even by a clock that went back
    join(files, [1.0, 3.0], tmp_path / "A+B")
    assert np.abs(load_features(joined).embeddings - weighted).max() > 0.01


def test_each_model_embeds_with_its_own_settings(tmp_path, monkeypatch):
    calls = []

    def fake_embed(
        predictor, landmarks, mirror, split, work, settings, image_size, batch_size, shards, whitening, elsewhere
    ):
        calls.append((predictor, landmarks.tolist(), work.name, image_size, shards, mirror, split))
        return None if shards and split == "index" else [tmp_path / work / split / "images_000.npz"]

    folders = [tmp_path / name for name in "AB"]
    for folder, size in zip(folders, (64, 96), strict=True):
        folder.mkdir()
        for name in ("model.keras", "labels.csv"):
            (folder / name).touch()
        (folder / "recipe.toml").write_text(f"image_size = {size}\n")
        for split in ("test", "index"):
            write(folder / split, "images_000", ["a"], np.eye(2)[:1])
    monkeypatch.setattr(ensemble.models, "load", lambda path: f"model of {path.parent.name}")
    monkeypatch.setattr(ensemble.models, "classes", lambda model: 2)
    monkeypatch.setattr(ensemble.models, "predictor", lambda model, *_: model)
    labels = {"A": np.array([10, 20]), "B": np.array([20, 30])}
    monkeypatch.setattr(ensemble.models, "load_labels", lambda path: labels[path.parent.name])
    monkeypatch.setattr(features, "embed", fake_embed)
    run = RunSettings(work=tmp_path / "A+B", models=folders)
    found = ensemble.embed(run, EmbeddingSettings(), "mirror", ["test", "index"])
    assert found == {split: [tmp_path / f"A+B/features/{split}/images_000.npz"] for split in ("test", "index")}
    assert calls == [
        (f"model of {name}", labels[name].tolist(), name, size, "", "mirror", split)
        for name, size in (("A", 64), ("B", 96))
        for split in ("test", "index")
    ]
    calls.clear()
    run = run.model_copy(update={"shards": "0:1"})
    assert ensemble.embed(run, EmbeddingSettings(), "mirror", ["test", "index"]) is None
    assert [call[4] for call in calls] == ["0:1"] * 4  # no model waits for another's missing shards


FROZEN = [
    "--beside=", "--backbone=Tiny", "--weights=none", "--loss=none", "--image-size=32", "--scales=1,2",
    "--whitening=lda",
]  # fmt: skip


def embeddings(work, split):
    return np.concatenate([load_features(path).embeddings for path in sorted(work.glob(f"features/{split}/*.npz"))])


def test_nothing_is_learnt_but_the_whitening(tiny_mirror, tmp_path):
    arguments = [f"--mirror={tiny_mirror}", f"--work={tmp_path}", *FROZEN]
    done = scripts.run(ROOT / "recognition.py", *arguments, "--scale-pooling=side_by_side", "--dimensions=5")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "24 train photos, shrinkage" in done.stdout
    whitening, _ = whitenings.load(tmp_path / "whitening.npz")
    assert whitening.projection.shape == (2 * 8, 5)
    unwhitened = np.concatenate(
        [load_features(path).embeddings for path in sorted(tmp_path.glob("unwhitened/train/*.npz"))]
    )
    # In float16 as they are on disk.
    np.testing.assert_allclose(embeddings(tmp_path, "train"), whitening(unwhitened), atol=1e-3)
    done = scripts.run(ROOT / "retrieval.py", *arguments, "--scale-pooling=side_by_side", "--dimensions=5")
    assert done.returncode == 0, done.stderr[-2000:]
    assert embeddings(tmp_path, "index").shape[1] == 5
    assert (tmp_path / "retrieval.csv").exists()
    assert "mini-epoch" not in done.stderr

    refused = scripts.run(ROOT / "retrieval.py", *arguments, "--scale-pooling=mean")
    assert refused.returncode == 2 and "whitening.npz is of another model or other settings" in refused.stderr
    model = tmp_path / "model.keras"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    refused = scripts.run(ROOT / "retrieval.py", *arguments, "--scale-pooling=side_by_side", "--dimensions=5")
    assert refused.returncode == 2 and "model.keras" in refused.stderr and "whitening" not in refused.stderr
    model.write_bytes(whole)
    before = embeddings(tmp_path, "test")
    again = scripts.run(ROOT / "recognition.py", *arguments, "--scale-pooling=mean", "--dimensions=4")
    assert again.returncode == 0, again.stderr[-2000:]
    assert embeddings(tmp_path, "test").shape == (len(before), 4)
