"""Both scripts on a tiny mirror with a random small network: whole, streamed, shared, run again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, extract, make_mirror
from small_run import SETTINGS, run, times

from landmarks.running.features_file import load_features


def test_both_scripts_note_their_runs_and_show_what_they_found(finished, tiny_mirror):
    runs = pd.read_csv(finished / "runs.csv")
    assert runs["command"].str.split().str[1].tolist() == ["recognition.py", "retrieval.py"]
    assert set(runs["ended"]) == {"finished"} and "tensorflow" in runs["versions"][1]
    page = (finished / "report.html").read_text()
    for part in ("result", "photos", "retrieval", "sure", "training", "data", "again"):
        assert f'<section id="{part}"' in page
    assert page.count('src="data:image/jpeg;base64,') > 20 and str(tiny_mirror) in page


def test_the_work_folder_holds_what_the_contract_says(finished, tiny_mirror):
    test_ids = pd.read_csv(tiny_mirror / "metadata/test.csv")["id"].tolist()
    index_ids = set(pd.read_csv(tiny_mirror / "metadata/index.csv")["id"])
    labels = pd.read_csv(finished / "labels.csv")
    assert labels.columns.tolist() == ["class", "landmark_id"]
    assert labels["landmark_id"].tolist() == [10, 20, 30]

    recognition = pd.read_csv(finished / "recognition.csv", keep_default_na=False)
    assert recognition["id"].tolist() == test_ids
    predicted = recognition["landmarks"].str.split(" ", expand=True)
    assert set(predicted[0].astype(int)) <= {10, 20, 30}
    retrieval = pd.read_csv(finished / "retrieval.csv", keep_default_na=False)
    assert retrieval["id"].tolist() == test_ids
    for cell in retrieval["images"]:
        assert set(cell.split(" ")) == index_ids
        assert len(cell.split(" ")) == len(index_ids)

    for split in ("test", "index"):
        for path in (finished / "features" / split).glob("*.npz"):
            features = load_features(path)
            assert features.embeddings.dtype == np.float16
            assert np.abs(np.linalg.norm(features.embeddings.astype("float32"), axis=1) - 1).max() < 2e-3
            assert len(features.ids) == len(features.landmark) == len(features.score)
    landmark_of = pd.read_csv(tiny_mirror / "metadata/train.csv").set_index("id")["landmark_id"]
    train = [load_features(path) for path in sorted((finished / "features/train").glob("*.npz"))]
    train_ids, gallery = (np.concatenate([getattr(f, name) for f in train]) for name in ("ids", "embeddings"))
    said = dict(zip(recognition["id"], predicted.to_numpy(), strict=True))
    for path in (finished / "features/test").glob("*.npz"):
        features = load_features(path)
        similarity = features.embeddings.astype("float32") @ gallery.astype("float32").T
        for photo, row in zip(features.ids, similarity, strict=True):
            nearest = row[landmark_of.loc[train_ids] == int(said[photo][0])].max()
            assert nearest == pytest.approx(row.max(), abs=1e-6)
            assert 0 < float(said[photo][1]) < 1

    metrics = json.loads((finished / "recognition.metrics.json").read_text())
    assert set(metrics["private"]) == {"gap", "gap_landmarks_only", "top1"}
    metrics = json.loads((finished / "retrieval.metrics.json").read_text())
    assert {"map@100", "p@1", "p@100", "mean_position", "median_position"} < set(metrics["public"])
    assert (finished / "recipe.toml").exists()
    assert list((finished / "logs").glob("events*"))
    history = pd.read_csv(finished / "training.csv")
    assert history["mini_epoch"].tolist() == list(range(1, 11))  # 5 of 6 shards, twice
    assert history["validation_gap"].between(0, 1).all()
    assert not (finished / "checkpoint.keras").exists()


def test_probabilities_have_the_order_of_the_similarities(finished, tiny_mirror, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    run("recognition.py", work, "--no-calibrate")
    assert (work / "recognition.metrics.json").read_text() == (finished / "recognition.metrics.json").read_text()
    probabilities, similarities = (
        pd.read_csv(folder / "recognition.csv").set_index("id")["landmarks"].str.split(" ", expand=True)
        for folder in (finished, work)
    )
    assert probabilities[0].tolist() == similarities[0].tolist()
    raw = similarities[1].astype(float)
    assert probabilities[1].astype(float).rank().tolist() == raw.rank().tolist()
    gallery = np.concatenate([load_features(path).embeddings for path in (work / "features/train").glob("*.npz")])
    for path in (work / "features/test").glob("*.npz"):
        features = load_features(path)
        nearest = (features.embeddings.astype("float32") @ gallery.astype("float32").T).max(axis=1)
        np.testing.assert_allclose(raw[features.ids], nearest, atol=1e-6)

    assert {"expected_calibration_error", "brier_score"} < set(
        json.loads((finished / "calibration.metrics.json").read_text())["private"]
    )
    assert not (finished / "calibration").exists()
    before = (work / "calibration.json").stat().st_mtime_ns
    (work / "calibration/0").mkdir(parents=True)  # as earlier releases left it
    done = run("recognition.py", work, "--calibrate")
    assert not (work / "calibration").exists()
    assert (work / "recognition.csv").read_bytes() == (finished / "recognition.csv").read_bytes()
    assert (work / "calibration.json").stat().st_mtime_ns == before and "scores are probabilities" not in done.stdout
    done = run("recognition.py", work, "--votes=2")
    assert (work / "calibration.json").stat().st_mtime_ns > before and "scores are probabilities" in done.stdout


def test_the_head_recognises_on_request_in_full_precision(finished, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    run("recognition.py", work, "--recognizer=head")
    said = pd.read_csv(work / "recognition.csv").set_index("id")["landmarks"]
    for path in (work / "features/test").glob("*.npz"):
        features = load_features(path)
        for photo, landmark, score in zip(features.ids, features.landmark, features.score, strict=True):
            assert said[photo] == f"{landmark} {float(score)!r}"


def test_the_submission_is_written_under_a_second_name_on_request(finished, tmp_path):
    for task in ("recognition", "retrieval"):
        run(f"{task}.py", finished, f"--submission={tmp_path}/{task}/submission.csv")
        assert (tmp_path / task / "submission.csv").read_bytes() == (finished / f"{task}.csv").read_bytes()
    assert "submission" not in (finished / "recipe.toml").read_text()
    for wrong in (tmp_path, "submission.txt"):
        done = run("recognition.py", finished, f"--submission={wrong}", check=False)
        assert done.returncode == 2 and "ends in .csv" in done.stderr and len(done.stderr.splitlines()) == 1


def test_both_files_pass_the_check(finished, tiny_mirror):
    for task in ("recognition", "retrieval"):
        subprocess.run(
            [sys.executable, ROOT / "submission.py", "check", task, finished / f"{task}.csv", "--mirror", tiny_mirror],
            check=True,
        )


def test_a_second_run_redoes_nothing(finished):
    before = times(finished)
    csv = (finished / "retrieval.csv").read_bytes()
    run("recognition.py", finished)
    run("retrieval.py", finished)
    assert times(finished) == before
    assert (finished / "retrieval.csv").read_bytes() == csv


def test_streamed_from_a_server_it_gives_the_same(finished, tiny_mirror, serve, tmp_path):
    """Also: a damaged features file is made again, and nothing but metadata stays of the mirror."""
    server = serve(tiny_mirror)
    work = tmp_path / "work"
    run("recognition.py", work, f"--mirror={server.url}", *SETTINGS)
    (work / "features/test/images_000.npz").write_bytes(b"damaged")
    run("retrieval.py", work)
    assert not list((work / "mirror").glob("*/*.tar*"))
    ours, theirs = (pd.read_csv(folder / "recognition.csv", dtype=str) for folder in (work, finished))
    split = [table["landmarks"].str.split(" ", expand=True) for table in (ours, theirs)]
    assert (split[0][0] == split[1][0]).all()
    np.testing.assert_allclose(split[0][1].astype(float), split[1][1].astype(float), rtol=1e-2)


def test_several_runs_share_the_embedding(finished, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    shutil.rmtree(work / "features")
    (work / "retrieval.csv").unlink()
    done = run("retrieval.py", work, "--shards=0:1")
    assert "without --shards" in done.stdout
    assert sorted(path.name for path in work.glob("features/*/*.npz")) == ["images_000.npz"] * 3
    assert not (work / "retrieval.csv").exists()
    first = times(work)
    run("retrieval.py", work, "--shards=1:9")
    assert (work / "retrieval.csv").exists()
    assert first.items() <= times(work).items()
    assert (work / "retrieval.csv").read_bytes() == (finished / "retrieval.csv").read_bytes()


def test_unreadable_photos_are_named_and_have_an_empty_row(finished, tiny_mirror, tmp_path):
    mirror = tmp_path / "mirror"
    shutil.copytree(tiny_mirror, mirror)
    path = mirror / "test/images_000.tar"
    data = path.read_bytes()
    begin = data.index(b"\xff\xd8")
    path.write_bytes(data[:begin] + bytes(50) + data[begin + 50 :])
    work = tmp_path / "work"
    shutil.copytree(finished, work, ignore=shutil.ignore_patterns("features", "*.csv"))
    shutil.copy(finished / "labels.csv", work)
    text = (work / "recipe.toml").read_text()
    (work / "recipe.toml").write_text(text.replace(str(tiny_mirror), str(mirror)))
    run("recognition.py", work)
    run("retrieval.py", work)
    (skipped,) = pd.read_csv(work / "skipped.csv")["name"]
    for name, column in (("recognition", "landmarks"), ("retrieval", "images")):
        table = pd.read_csv(work / f"{name}.csv", keep_default_na=False).set_index("id")[column]
        assert table[skipped] == ""
        assert (table.drop(skipped) != "").all()


def test_labels_that_were_cut_at_the_end_of_a_line_are_named(finished, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    labels = work / "labels.csv"
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:-1]))
    for script in ("recognition.py", "retrieval.py"):
        done = subprocess.run([sys.executable, ROOT / script, "--work", work], capture_output=True, text=True)
        assert done.returncode == 2
        assert "labels.csv has 2 landmarks, and the model beside it has learnt 3: bring back" in done.stderr


def test_a_competition_runs_again_on_hidden_photos(tmp_path):
    """Test photos and train.csv are swapped at the same paths; the model stays, and every hidden photo gets its row."""
    folder, work = tmp_path / "input", tmp_path / "work"
    shown, hidden = (make_mirror(tmp_path / name, train=6, test=3, **size) for name, size in
                     (("shown", {}), ("hidden", {"landmarks": 4})))  # fmt: skip

    def mount(mirror: Path) -> list[str]:
        shutil.rmtree(folder, ignore_errors=True)
        for split in ("train", "index", "test"):
            for path in (mirror / split).glob("*.tar"):
                extract(path, folder / split)
            shutil.copy(mirror / f"metadata/{split}.csv", folder)
        return pd.read_csv(folder / "test.csv")["id"].tolist()

    mount(shown)
    arguments = [f"--mirror={folder}", *SETTINGS, "--epochs=1", "--validation-shards=0"]
    for script in ("recognition.py", "retrieval.py"):
        run(script, work, *arguments)
    model = (work / "model.keras").stat().st_mtime_ns
    test_ids = mount(hidden)
    for script, column in (("recognition.py", "landmarks"), ("retrieval.py", "images")):
        run(script, work, *arguments)
        table = pd.read_csv(work / script.replace(".py", ".csv"), keep_default_na=False)
        assert table["id"].tolist() == test_ids and (table[column] != "").all()
    index_ids = set(pd.read_csv(folder / "index.csv")["id"])
    assert {photo for cell in table["images"] for photo in cell.split()} == index_ids
    assert (work / "model.keras").stat().st_mtime_ns == model


@pytest.mark.parametrize("recipe", [["small-ensemble"], ["small-frozen", "--whitening=lda"]])
def test_one_train_photo_of_each_landmark_is_enough(recipe, tmp_path):
    """As `mirror.py import` makes of three photos of each."""
    mirror, tiny = make_mirror(tmp_path / "mirror", train=1), [one for one in SETTINGS if "recipe" not in one]
    run("recognition.py", tmp_path / "work", f"--mirror={mirror}", *tiny, f"--recipe={recipe[0]}", *recipe[1:])
    answers = pd.read_csv(tmp_path / "work/recognition.csv")["landmarks"].str.split().str[0].astype(int)
    assert set(answers) <= set(pd.read_csv(mirror / "metadata/train.csv")["landmark_id"])
