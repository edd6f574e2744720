import shutil
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from conftest import identity, recipe_with
from PIL import Image

import verification
from landmarks.local_features import calibration
from landmarks.local_features.calibration import calibrate, hold_out
from landmarks.local_features.candidates import features_of
from landmarks.mirrors import build
from landmarks.mirrors.open import open_mirror
from landmarks.neighbours import ensemble
from landmarks.running import recipe as recipes
from landmarks.running.command import InputError
from landmarks.running.features_file import Features, save_features

TRUTH = {"a": [1], "b": [], "c": [3, 8], "d": [5], "e": [6], "f": []}


def predictions(**rows):
    return pd.DataFrame.from_dict(rows, orient="index", columns=["landmark", "score", "inliers"])


def test_the_table_by_hand():
    """Photos a and c are right, b shows none, d something else; e and f have no prediction, g is of the other half."""
    verified = predictions(g=(9, 1.0, 99), a=(1, 0.9, 40), b=(2, 0.8, 10), c=(3, 0.7, 20), d=(4, 0.6, 0))
    table, best = calibrate(verified, TRUTH, most=45)
    assert table.index.tolist() == list(range(-1, 46))
    assert table.columns.tolist() == ["precision", "recall", "let_through", "lost", "gap"]
    by_hand = {  # of 4 photos with a landmark and 2 without; in order of score a, b, c, d
        range(-1, 0): (2 / 4, 2 / 4, 1 / 2, 0, (1 + 2 / 3) / 4),
        range(0, 10): (2 / 3, 2 / 4, 1 / 2, 0, (1 + 2 / 3) / 4),
        range(10, 20): (1, 2 / 4, 0, 0, (1 + 1) / 4),
        range(20, 40): (1, 1 / 4, 0, 1 / 2, 1 / 4),
        range(40, 46): (np.nan, 0, 0, 1, 0),
    }
    for thresholds, row in by_hand.items():
        for threshold in thresholds:
            np.testing.assert_allclose(table.loc[threshold], row)
    assert best == 10  # the lowest of those with the best GAP
    assert calibrate(verified, TRUTH, most=9)[1] == -1  # up to there nothing is gained


def test_what_is_right_with_few_inliers_is_best_left_alone():
    verified = predictions(a=(1, 0.9, 0), b=(2, 0.1, 30), c=(8, 0.8, 0))
    table, best = calibrate(verified, TRUTH, most=20)
    assert best == -1
    assert table["gap"].tolist() == [2 / 4, *[0] * 21]
    assert table["precision"].tolist() == [2 / 3, *[0] * 21]


def test_without_predictions_or_landmarks():
    table, best = calibrate(predictions(g=(9, 1.0, 99)), TRUTH, most=3)
    assert best == -1
    assert table["precision"].isna().all() and (table[["recall", "let_through", "gap"]] == 0).all(axis=None)
    with pytest.raises(ZeroDivisionError):
        calibrate(predictions(b=(2, 0.8, 10)), {"b": []}, most=3)


def random_features(folder, landmarks, files=3):
    """Random features of train photos of these landmarks in some files, and their table."""
    rng = np.random.default_rng(0)
    train = pd.DataFrame({"id": [f"photo{number:03d}" for number in range(len(landmarks))], "landmark_id": landmarks})
    embeddings = rng.standard_normal((len(train), 8))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)
    paths = [folder / f"images_{number:03d}.npz" for number in range(files)]
    for path, rows in zip(paths, np.array_split(np.arange(len(train)), files), strict=True):
        save_features(path, Features(train["id"].to_numpy(str)[rows], embeddings[rows]))
    return paths, train, embeddings.astype(np.float32)


def test_held_out_photos_are_predicted_as_a_plain_loop_does(tmp_path):
    landmarks = np.array([1] * 10 + [2] * 5 + [3] * 2 + [4, 5])
    paths, train, embeddings = random_features(tmp_path, landmarks)
    found = hold_out(paths, train, 14, 0, 2, tmp_path / "held_out.npz")
    assert found["shown"].sum() == 7 and len(found) == 14
    assert (found["truth"] == train.set_index("id")["landmark_id"].loc[found.index]).all()
    assert set(found["truth"]) == {1, 2, 3, 4, 5}  # spread over the landmarks
    similarity = embeddings @ embeddings.T
    for row in found.itertuples():
        photo = train.index[train["id"] == row.Index][0]
        others = [n for n in range(len(train)) if (n != photo if row.shown else landmarks[n] != row.truth)]
        nearest = max(others, key=lambda n: similarity[photo, n])
        assert row.landmark == landmarks[nearest] and row.score == pytest.approx(similarity[photo, nearest], abs=1e-5)
        assert row.shown or row.landmark != row.truth
        assert not row.shown or (landmarks == row.truth).sum() > 1
    again = hold_out(paths, train, 14, 0, 1, tmp_path / "held_out.npz")
    pd.testing.assert_frame_equal(again.sort_index(), found.sort_index())


def test_photos_that_are_known_to_show_none_take_the_place_of_these(tmp_path):
    paths, train, embeddings = random_features(tmp_path, np.array([1] * 6 + [2] * 6))
    random = np.random.default_rng(1).standard_normal((9, 8)).astype(np.float16)
    none = [f"none{number}" for number in range(9)]
    save_features(tmp_path / "index.npz", Features(np.array(none), random))
    given = 10, 0, 1, tmp_path / "held_out.npz", [tmp_path / "index.npz"]
    found = hold_out(paths, train, *given, none[:7] + ["gone"])
    others = found[~found["shown"]]
    assert len(found) == 10 and len(others) == 5 and set(others.index) < set(none[:7])
    for photo, row in others.iterrows():
        similarity = random[none.index(photo)].astype(np.float32) @ embeddings.T
        assert row["landmark"] == train["landmark_id"][similarity.argmax()] and row["truth"] == -1
        assert row["score"] == pytest.approx(similarity.max(), abs=1e-5)
    # Listed train photos are not held to be like themselves.
    found = hold_out(paths, train, *given[:-1], paths, train["id"].tolist()[:3])
    assert found["score"].max() < 0.999


@pytest.mark.parametrize("landmarks", [[1, 1, 1, 1], [1, 2, 3, 4]])
def test_what_cannot_be_held_out_is_one_clear_line(tmp_path, landmarks):
    paths, train, _ = random_features(tmp_path, landmarks, files=1)
    with pytest.raises(InputError, match="of 4 train photos none can be held out: there must be two landmarks"):
        hold_out(paths, train, 10, 0, 1, tmp_path / "held_out.npz")


def files_of(folder, split, parts):
    """Features files of these (ids, embeddings)."""
    paths = [folder / split / f"images_{number:03d}.npz" for number in range(len(parts))]
    for path, (ids, embeddings) in zip(paths, parts, strict=True):
        save_features(path, Features(np.array(ids), np.asarray(embeddings, np.float16)))
    return paths


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


def size_on_disk(recipe):
    return sum(path.stat().st_size for path in (recipe.run.work / "local").glob("*/*/*.npz"))


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
    monkeypatch.setattr(ensemble, "embed", lambda _, __, ___, splits: {split: files[split] for split in splits})
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
    monkeypatch.setattr(ensemble, "embed", lambda *given: {"index": index} | embed(*given[:3], ["train"]))
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
    mirror, files = open_mirror(recipe.source.mirror), ensemble.embed(recipe.run, recipe.embedding, None, ["train"])
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
        lambda candidates, *_: compared.update(candidates) or [(i, [0]) for i in candidates],
    )  # fmt: skip
    verification.calibrate(trained)
    assert len(compared) == 12
    for photo, row in compared.items():
        landmarks = {LANDMARK_OF[other] for other in row}
        assert photo not in row and len(landmarks) == 1
        assert len(row) == (3 if landmarks == {LANDMARK_OF[photo]} else 4)
