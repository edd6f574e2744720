from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from conftest import identity, recipe_with
from PIL import Image

from landmarks.local_features import decision
from landmarks.local_features.candidates import by_need, features_of, kept_features, most_similar
from landmarks.local_features.points import LocalFeatures
from landmarks.mirrors import build
from landmarks.mirrors.open import open_mirror
from landmarks.neighbours.search import Neighbours
from landmarks.running.command import InputError
from landmarks.running.features_file import Features, save_features


def files_of(folder, split, parts):
    """Features files of these (ids, embeddings)."""
    paths = [folder / split / f"images_{number:03d}.npz" for number in range(len(parts))]
    for path, (ids, embeddings) in zip(paths, parts, strict=True):
        save_features(path, Features(np.array(ids), np.asarray(embeddings, np.float16)))
    return paths


# Most similar, comparing, deciding


def test_the_most_similar_photos_are_those_of_a_plain_loop(tmp_path):
    rng = np.random.default_rng(0)
    test = [([f"test{part}{n:02d}" for n in range(15)], rng.standard_normal((15, 6))) for part in range(2)]
    train = [([f"train{part}{n:02d}" for n in range(20)], rng.standard_normal((20, 6))) for part in range(3)]
    landmark_of = {i: int(rng.integers(1, 6)) for ids, _ in train for i in ids}
    predicted = {i: int(rng.integers(1, 7)) for ids, _ in test for i in ids[:-2]}  # of 6 there is no train photo
    similarity = {
        (i, j): np.float16(one).astype(np.float32) @ np.float16(other).astype(np.float32)
        for ids, ones in test for i, one in zip(ids, ones, strict=True)
        for others_ids, others in train for j, other in zip(others_ids, others, strict=True)
    }  # fmt: skip
    expected = {
        i: sorted((j for j in landmark_of if landmark_of[j] == landmark), key=lambda j, i=i: -similarity[i, j])[:11]
        for i, landmark in predicted.items()
    }
    assert {len(row) for row in expected.values()} > {0, 11}
    found = most_similar(
        files_of(tmp_path, "test", test), files_of(tmp_path, "train", train), pd.Series(predicted),
        pd.DataFrame({"id": list(landmark_of), "landmark_id": list(landmark_of.values())}), 11,
    )  # fmt: skip
    assert found == expected


# On a mirror


def texture(seed: int, turn: float = 0, shrink: float = 1) -> bytes:
    """A photo of 320 x 240 px of coloured blobs, other ones for each seed, turned (degrees) and made smaller."""
    noise = np.random.default_rng(int(seed)).integers(0, 256, (20, 27, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
    cos, sin = np.cos(np.radians(turn)) / shrink, np.sin(np.radians(turn)) / shrink
    encoded = BytesIO()
    image.transform(
        image.size, Image.Transform.AFFINE, (cos, sin, 20, -sin, cos, 10), Image.Resampling.BICUBIC
    ).save(encoded, "JPEG", quality=90)  # fmt: skip
    return encoded.getvalue()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """A mirror of 3 landmarks, 4 train, 2 index and 2 test photos each, and 3 test and 2 index photos of none."""
    rows = [(n, split) for n in (10, 20, 30) for split in ["train"] * 4 + ["index"] * 2 + ["test"] * 2]
    rows += [(pd.NA, split) for split in ["test"] * 3 + ["index"] * 2]
    photos = pd.DataFrame(rows, columns=["landmark_id", "split"]).astype({"landmark_id": "Int64"})
    photos["id"] = [identity(number) for number in range(len(photos))]
    photos["url"] = photos.index.astype(str)
    seeds = photos["landmark_id"].fillna(photos.index.to_series() + 100)
    out = tmp_path_factory.mktemp("views") / "mirror"
    build.build_mirror(photos, lambda n: texture(seeds[int(n)], turn=int(n) % 7 - 3, shrink=1 - int(n) % 4 / 20), out)
    return open_mirror(str(out))


LANDMARK_OF = {identity(number): 10 * (number // 8 + 1) for number in range(24)}


@pytest.fixture
def run(mirror, tmp_path):
    """Settings of a run in its own work folder, and its features files, whose embeddings are at random."""
    rng = np.random.default_rng(0)
    files = {}
    for split in ("test", "train", "index"):
        parts = [
            (shard.ids, rng.standard_normal((len(shard.ids), 4)))
            for shard in mirror.stream(split, mirror.shard_names(split))
        ]
        files[split] = files_of(tmp_path / "work/features", split, parts)
    recipe = recipe_with(
        mirror=mirror.name, work=tmp_path / "work", extractor="sift", verify="none", inliers=15, comparisons=3,
        local_points=150, rerank_inliers=6,
    )  # fmt: skip
    return recipe, files


def predictions(mirror):
    """Every test photo's own landmark; of those that show none, 10."""
    ids = mirror.ids("test")
    landmark = [LANDMARK_OF.get(i, 10) for i in ids]
    return pd.DataFrame({"landmark": landmark, "score": np.linspace(0.2, 0.9, len(ids))}, index=ids)


def test_local_features_are_made_again_when_they_would_be_others(run, mirror, tmp_path, monkeypatch):
    recipe, files = run
    opened = []

    def open_it(name, model, points):
        opened.append(points)
        found = LocalFeatures(np.full((1, 2), len(opened), np.float32), np.eye(1, 8, dtype=np.float32))
        return lambda photos: [found for _ in photos]

    monkeypatch.setattr("landmarks.local_features.candidates.open_extractor", open_it)
    model = tmp_path / "model"
    model.mkdir()
    (model / "delf.keras").write_bytes(b"one")
    ids = mirror.ids("test")

    def made(**settings):
        changed = recipe_with(recipe, **{"extractor": "delf", **settings})
        kept = kept_features(changed.verification, changed.run.work, model, mirror, "test", files["test"], ids)
        assert sorted(kept) == sorted(ids)
        return {int(features.points[0, 0]) for features in kept.values()}

    assert made() == made() == {1}
    assert made(local_points=99) == {2} and opened == [150, 99]
    assert made(local_points=99, local_size=200) == {3}
    (model / "delf.keras").write_bytes(b"two")
    assert made(local_points=99, local_size=200) == {4}
    assert made(extractor="sift", local_points=99) == {5}
    assert made(local_points=99, local_size=200) == {4}  # each extractor has its folder


def test_those_are_needed_most_that_come_first_for_most_photos():
    candidates = {"a": ["x", "y", "z"], "b": ["w", "x", "y"], "c": ["w", "v"], "d": []}
    assert by_need(candidates) == ["w", "x", "y", "v", "z"]


def verify(recipe, *arguments):
    return decision.verify(recipe.run, recipe.verification, *arguments)


def rerank(recipe, *arguments):
    return decision.rerank(recipe.run, recipe.verification, *arguments, count=recipe.retrieval.rerank_inliers)


def size_on_disk(recipe):
    return sum(path.stat().st_size for path in (recipe.run.work / "local").glob("*/*/*.npz"))


def test_local_features_stay_within_the_disk_they_may_take(run, mirror, capsys):
    (recipe, files), found = run, predictions(mirror)
    candidates = most_similar(files["test"], files["train"], found["landmark"], mirror.train(), 3)
    verify(recipe, mirror, files, found)
    everything = size_on_disk(recipe)
    others = 12 - sum(not any(i in row for row in candidates.values()) for i in mirror.train()["id"])
    one = everything / (9 + others)
    assert "left out" not in capsys.readouterr().out

    less = recipe_with(recipe, local_gigabytes=(9 + 4.5) * one / 1e9)
    verify(less, mirror, files, found)
    assert size_on_disk(less) <= 1.05e9 * less.verification.local_gigabytes
    table = pd.read_csv(recipe.run.work / "verification.csv", index_col="id")
    first = set(by_need(candidates)[:4])
    for photo, row in table.iterrows():
        left = [i for i in candidates[photo] if i in first]
        assert row["compared"] == min(len(left), 1 if photo in LANDMARK_OF else 3)
    left_out = sum(i not in first for row in candidates.values() for i in row)
    alone = sum(not first.intersection(row) for row in candidates.values())
    assert f"{left_out} of 27 comparisons are left out, and {alone} photos have none" in capsys.readouterr().out

    neighbours = Neighbours(
        np.array(list(candidates)), np.array(mirror.ids("index")), np.full((9, 2), 0.5, np.float32),
        np.tile([3, 5], (9, 1)), None, None,
    )  # fmt: skip
    rerank(less, mirror, files, neighbours)  # for which the train photos' features go
    assert size_on_disk(less) <= 1.05e9 * less.verification.local_gigabytes
    assert {path.parent.name for path in recipe.run.work.glob("local/*/*/*.npz")} == {"test", "index"}
    features_of(
        less.run, recipe_with(less, local_gigabytes=one / 1e9).verification, mirror, files, ("test", "train"), {}
    )
    with pytest.raises(InputError, match="9 test photos take .* GB, which leaves no room.*--local-gigabytes"):
        verify(recipe_with(recipe, local_gigabytes=5 * one / 1e9), mirror, files, found)
