from pathlib import Path

import pandas as pd
import pytest
from conftest import make_mirror

from landmarks.mirrors.open import open_mirror
from landmarks.running.command import InputError
from landmarks.running.recipe import load
from landmarks.training import selection
from landmarks.training.selection import select_classes, train_photos, voters


def photos_of(recipe, mirror):
    return train_photos(recipe.photos, mirror, recipe.run.work)


def voters_of(recipe, mirror):
    return voters(recipe.recognition.vote_all, recipe.photos, mirror, recipe.run.work)


def test_learning_from_clean_photos(tmp_path):
    out = make_mirror(tmp_path / "mirror")
    mirror = open_mirror(str(out))
    everything = mirror.train()
    assert len(photos_of(load([]), mirror)) == len(everything) == 24
    with pytest.raises(InputError, match="train_clean.csv"):
        photos_of(load(["--clean", "true"]), mirror)

    clean = everything[everything["landmark_id"] == 20].head(3)
    (tmp_path / "mine.csv").write_text("landmark_id,images\n20," + " ".join(clean["id"]) + "\n")
    (out / "metadata/train_clean.csv").write_text("landmark_id,images\n10," + everything["id"][0] + "\n")
    kept = photos_of(load(["--clean", str(tmp_path / "mine.csv")]), mirror)
    pd.testing.assert_frame_equal(kept.reset_index(drop=True), clean.reset_index(drop=True), check_dtype=False)
    assert len(photos_of(load(["--clean", "true"]), mirror)) == 1


def test_a_classifier_cleans_first_and_once(tmp_path, monkeypatch):
    mirror = open_mirror(str(make_mirror(tmp_path / "mirror")))
    photo = mirror.train()["id"][5]
    calls = []

    def clean(source, out, **options):
        calls.append((source, options))
        out.write_text(f"landmark_id,images\n10,{photo}\n")

    monkeypatch.setattr(selection, "clean", clean)
    (tmp_path / "work").mkdir()
    arguments = [f"--work={tmp_path}/work", f"--mirror={mirror.name}", "--classifier=c.onnx", "--categories=c.txt"]
    for _ in range(2):
        assert photos_of(load(arguments), mirror)["id"].tolist() == [photo]
    assert calls == [(mirror.name, {"classifier": Path("c.onnx"), "categories": Path("c.txt")})]


def test_clean_is_yes_or_no_or_a_file(tmp_path):
    for toml, value in {"true": "true", "false": "", '"clean.csv"': "clean.csv"}.items():
        (tmp_path / "mine.toml").write_text(f"clean = {toml}")
        assert load(["--recipe", str(tmp_path / "mine.toml")]).photos.clean == value


def test_who_votes(tmp_path):
    mirror = open_mirror(str(make_mirror(tmp_path / "mirror")))
    everything = mirror.train()
    work = ["--work", str(tmp_path / "work")]
    pd.testing.assert_frame_equal(voters_of(load(work), mirror), everything)
    assert set(voters_of(load([*work, "--exclude", "10,30"]), mirror)["landmark_id"]) == {20}

    (tmp_path / "work").mkdir()
    (tmp_path / "work/labels.csv").write_text("class,landmark_id\n0,20\n1,30\n")
    assert set(voters_of(load([*work, "--no-vote-all"]), mirror)["landmark_id"]) == {20, 30}
    clean = everything.groupby("landmark_id").head(2)
    (tmp_path / "clean.csv").write_text(
        "landmark_id,images\n"
        + "".join(f"{name},{' '.join(ids)}\n" for name, ids in clean.groupby("landmark_id")["id"])
    )
    only = [*work, "--clean", str(tmp_path / "clean.csv")]
    assert len(voters_of(load(only), mirror)) == 24
    few = voters_of(load([*only, "--no-vote-all"]), mirror)
    assert set(few["id"]) == set(clean.loc[clean["landmark_id"] != 10, "id"])


TABLE = pd.DataFrame({"landmark_id": [7] * 20 + [3] * 19 + [138982] * 50 + [5] * 25})


def test_classes_are_the_frequent_landmarks_less_the_excluded():
    assert select_classes(TABLE, 20, [138982]).tolist() == [5, 7]
    assert select_classes(TABLE, 19, []).tolist() == [3, 5, 7, 138982]


@pytest.mark.parametrize("min_images", [26, 51])
def test_too_few_classes(min_images):
    with pytest.raises(InputError, match="lower --min-images"):
        select_classes(TABLE, min_images, [])
