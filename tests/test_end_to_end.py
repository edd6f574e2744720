"""Both scripts on a tiny mirror with a random small network: whole, resumed, streamed, shared, and given bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scripts
from conftest import ROOT, make_mirror

from landmarks.running.features_file import load_features, save_features

SETTINGS = [
    *scripts.PLAIN, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=8", "--epochs=2",
    "--learning-rate=3e-3",
]  # fmt: skip


def run(script: str, work: Path, *arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess:
    done = scripts.run(ROOT / script, f"--work={work}", *arguments, **options)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def times(work: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [*work.glob("features/*/*.npz"), work / "model.keras"]}


@pytest.fixture(scope="module")
def finished(tiny_mirror, tmp_path_factory) -> Path:
    """The work folder of both scripts."""
    work = tmp_path_factory.mktemp("finished") / "work"
    run("recognition.py", work, f"--mirror={tiny_mirror}", *SETTINGS)
    run("retrieval.py", work)
    return work


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


def test_kill_at_any_time_and_go_on(tiny_mirror, tmp_path):
    work = tmp_path / "work"
    settings = [f"--mirror={tiny_mirror}", *SETTINGS, "--epochs=10"]
    rows = 0
    for kill, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 128 + 15), (signal.SIGKILL, -9)):

        def after_a_mini_epoch(process, rows=rows, kill=kill):
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                if (work / "training.csv").exists() and len(pd.read_csv(work / "training.csv")) > rows:
                    break
                time.sleep(0.02)
            os.kill(process, kill)

        done = run("recognition.py", work, *settings, check=False, meanwhile=after_a_mini_epoch)
        assert done.returncode == code, done.stderr[-3000:]
        if kill == signal.SIGTERM:
            assert "the same command goes on from here" in done.stderr
        before = pd.read_csv(work / "training.csv")
        assert len(before) > rows
        rows = len(before)
    for path in work.glob("part-*"):
        assert path.stem not in ("recognition", "model")
    run("recognition.py", work)
    history = pd.read_csv(work / "training.csv")
    pd.testing.assert_frame_equal(history.head(rows), before)  # finished mini-epochs were not redone
    assert history["mini_epoch"].tolist() == list(range(1, 51))
    run("retrieval.py", work)
    for task in ("recognition", "retrieval"):
        assert len(pd.read_csv(work / f"{task}.csv")) == len(pd.read_csv(tiny_mirror / "metadata/test.csv"))


def test_a_time_limit_ends_cleanly_and_says_how_to_go_on(tiny_mirror, tmp_path):
    work = tmp_path / "work"
    done = run("recognition.py", work, f"--mirror={tiny_mirror}", *SETTINGS, "--time-limit=0.001")
    assert "the time limit is reached" in done.stderr
    assert "the same command goes on from here" in done.stderr
    assert not (work / "recognition.csv").exists()


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


def test_a_competition_runs_again_on_hidden_photos(tmp_path):
    """Test photos and train.csv are swapped at the same paths; the model stays, and every hidden photo gets its row."""
    folder, work = tmp_path / "input", tmp_path / "work"
    shown, hidden = (make_mirror(tmp_path / name, train=6, test=3, **size) for name, size in
                     (("shown", {}), ("hidden", {"landmarks": 4})))  # fmt: skip

    def mount(mirror: Path) -> list[str]:
        shutil.rmtree(folder, ignore_errors=True)
        for split in ("train", "index", "test"):
            for path in (mirror / split).glob("*.tar"):
                with tarfile.open(path) as tar:
                    tar.extractall(folder / split, filter="data")
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


@pytest.fixture
def small_disk(tmp_path):
    """A folder that 3 MB fill up."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount the small disk that this fills")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_bad_input_is_one_clear_line_and_exit_code_2(finished, tiny_mirror, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    bad_csv = make_mirror(tmp_path / "bad_csv")
    (bad_csv / "metadata/train.csv").write_text("id,landmark\na,1\n")
    mirror = f"--mirror={tiny_mirror}"
    cases = [
        ("recognition.py", tmp_path / "a", ["--mirror=http://127.0.0.1:9"], "check host and port"),
        ("recognition.py", tmp_path / "a", [f"--mirror={tmp_path}"], "no mirror"),
        ("recognition.py", tmp_path / "a", [f"--mirror={bad_csv}", *SETTINGS], "landmark_id"),
        ("recognition.py", tmp_path / "b", [mirror, *SETTINGS, "--min-images=99"], "--min-images"),
        ("recognition.py", tmp_path / "c", [mirror, *SETTINGS, "--backbone=ResNet51"], "ResNet51"),
        ("recognition.py", tmp_path / "d", [mirror, *SETTINGS, "--solution=gone.csv"], "gone.csv cannot be read"),
        ("recognition.py", tmp_path / "d", [mirror, *SETTINGS, "--clean=gone.csv"], "gone.csv cannot be read"),
        ("recognition.py", tmp_path / "d", ["--backbone=Tini"], "did you mean Tiny"),
        ("recognition.py", tmp_path / "e", [mirror, *SETTINGS, "--epochs=none"], "--epochs"),
        ("recognition.py", occupied, [mirror, *SETTINGS], "occupied"),
        ("recognition.py", Path("/proc/nowhere"), [mirror, *SETTINGS], "/proc/nowhere cannot be written"),
        ("recognition.py", finished, ["--backbone=VGG16"], "another --work"),
        ("retrieval.py", tmp_path / "f", [mirror], "recognition.py"),
        ("retrieval.py", finished, ["--no-such-setting"], "no-such-setting"),
        ("retrieval.py", Path(f"{finished},{tmp_path}/g"), [], "no trained model"),
        ("recognition.py", finished, ["--penalty=winners", f"--non-landmarks={occupied}"], "occupied"),
    ]
    for script, work, arguments, message in cases:
        done = run(script, work, *arguments, check=False)
        assert done.returncode == 2, (arguments, done.stderr[-2000:])
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.stderr
        assert message in errors[0]
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("*/*.csv.part")) and not (work / "model.keras").exists() or work == finished


def test_a_full_disk_is_one_clear_line(tiny_mirror, small_disk):
    large = "--embedding-size=100000"
    done = run("recognition.py", small_disk / "work", f"--mirror={tiny_mirror}", *SETTINGS, large, check=False)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "no space left" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(small_disk.rglob("*.keras"))


def test_the_scripts_leave_the_user_his_thread_settings():
    program = "import os; from landmarks.running import command; command.prepare_backend();"
    program += "print(os.environ['TF_NUM_INTEROP_THREADS'])"
    for given, expected in (({}, "1"), ({"TF_NUM_INTEROP_THREADS": "5"}, "5")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")} | given
        done = scripts.run("-c", program, environment=environment)
        assert done.stdout.strip() == expected, done.stderr
