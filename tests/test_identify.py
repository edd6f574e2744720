"""One photo at a time: as recognition.csv has it, for each way to recognise, and the work folder stays as it is."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scripts
import tiny  # noqa: F401
from conftest import ROOT, jpeg
from PIL import Image

from landmarks.neighbours.identification import Identifier
from landmarks.running.command import InputError

SETTINGS = [
    *scripts.PLAIN, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=8", "--epochs=2",
    "--learning-rate=3e-3",
]  # fmt: skip


def run(script: str, *arguments, check: bool = True):
    done = scripts.run(ROOT / script, *arguments)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def errors(done) -> list[str]:
    """What it says on the standard error, without what TensorFlow says there of a GPU that is not there."""
    return [line for line in done.stderr.splitlines() if "cuda" not in line]


def state(work: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file() and "mirror" not in path.parts}


@pytest.fixture(scope="module")
def finished(tiny_mirror, tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("finished") / "work"
    run("recognition.py", f"--work={work}", f"--mirror={tiny_mirror}", *SETTINGS)
    return work


@pytest.fixture(scope="module")
def photos(tiny_mirror, tmp_path_factory) -> Path:
    """The test photos of the mirror as files."""
    folder = tmp_path_factory.mktemp("photos")
    for shard in (tiny_mirror / "test").glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                data = tar.extractfile(member)
                if data is not None:
                    (folder / Path(member.name).name).write_bytes(data.read())
    return folder


@pytest.fixture
def work(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "work")


def said(work: Path) -> pd.DataFrame:
    table = pd.read_csv(work / "recognition.csv").set_index("id")["landmarks"].str.split(" ", expand=True)
    return pd.DataFrame({"landmark": table[0].astype(int), "score": table[1].astype(float)})


NON_LANDMARKS = "--non-landmarks={}/non_landmarks.txt"


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["--no-calibrate"],
        ["--recognizer=head"],
        ["--recognizer=centres"],
        ["--votes=3", "--vote-power=9", "--blend=10"],
        ["--penalty=published", NON_LANDMARKS],
        ["--penalty=winners", NON_LANDMARKS, "--penalty-weight=0"],
        ["--penalty=winners", NON_LANDMARKS, "--recognizer=centres"],
        ["--penalty=published", "--non-landmarks=other-half"],
        ["--scales=1,1.5", "--whitening=pca", "--votes=2"],
    ],
    ids=" ".join,
)
def test_a_test_photo_is_what_recognition_says(work, photos, tiny_mirror, settings):
    index = pd.read_csv(tiny_mirror / "metadata/index.csv")["id"]
    (work / "non_landmarks.txt").write_text("\n".join(index[-4:]))
    run("recognition.py", f"--work={work}", *(one.format(work) for one in settings))
    before = state(work)
    expected = said(work)
    identifier = Identifier(work)
    solution = pd.read_csv(tiny_mirror / "ground_truth/recognition_solution_v2.1.csv").set_index("id")["Usage"]
    others = expected[solution[expected.index] == "Private"] if "--non-landmarks=other-half" in settings else expected
    for photo, row in others.iterrows():
        answer = identifier.identify(photos / f"{photo}.jpg", threshold=-10)
        assert answer.confidence == pytest.approx(row["score"], rel=5e-3, abs=2e-3)
        if len(answer.top) == 1 or answer.top[0].score - answer.top[1].score > 1e-3 * abs(answer.top[0].score):
            assert answer.landmark == row["landmark"]
        assert answer.calibrated == (not {"--no-calibrate", "--recognizer=head"}.intersection(settings))
        assert answer.name == f"Landmark {answer.landmark // 10}"
        ranked = [one.score for one in answer.top]
        assert len({one.landmark for one in answer.top}) == len(ranked) > 1
        assert ranked[1:] == sorted(ranked[1:], reverse=True)
        assert ranked[0] >= ranked[1] or "--blend=10" in settings
    assert state(work) == before


def test_the_nearest_train_photos(finished, tiny_mirror, photos):
    train = pd.read_csv(tiny_mirror / "metadata/train.csv").set_index("id")["landmark_id"]
    identifier = Identifier(finished)
    answer = identifier.identify(next(photos.iterdir()).read_bytes(), top=100)
    assert [one.landmark for one in answer.nearest] == train[[one.id for one in answer.nearest]].tolist()
    assert len(answer.nearest) == len(train)
    with pytest.raises(ValueError, match="top is 0"):
        identifier.identify(b"", top=0)
    similarities = [one.similarity for one in answer.nearest]
    assert similarities == sorted(similarities, reverse=True)
    for one in answer.nearest[:3]:
        with tarfile.open(tiny_mirror / f"train/{one.shard}.tar") as tar:
            data = tar.extractfile("/".join([*one.id[:3], f"{one.id}.jpg"])).read()
        similarity = {photo.id: photo.similarity for photo in identifier.identify(data, top=24).nearest}
        assert similarity[one.id] == pytest.approx(1, abs=2e-3)  # there are others as near


def test_several_models_together(finished, photos, tmp_path):
    models = [shutil.copytree(finished, tmp_path / name) for name in "AB"]
    run("recognition.py", f"--work={models[0]},{models[1]}", "--model-weights=2,1")
    expected = said(tmp_path / "A+B")
    for work in (f"{models[0]},{models[1]}", tmp_path / "A+B"):
        identifier = Identifier(work)
        for photo, row in expected.iterrows():
            answer = identifier.identify(photos / f"{photo}.jpg", threshold=0)
            assert answer.confidence == pytest.approx(row["score"], rel=5e-3, abs=2e-3)


def test_a_model_beside_the_trained_one(work, photos, tmp_path):
    other = tmp_path / "still.toml"
    other.write_text('backbone = "Tiny"\nweights = "none"\nimage_size = 48\nloss = "none"\nwhitening = "lda"\n')
    run("recognition.py", f"--work={work}", f"--beside={other}", "--model-weights=1,2")
    identifier, expected = Identifier(work), said(work)
    for photo, row in expected.iterrows():
        answer = identifier.identify(photos / f"{photo}.jpg", threshold=0)
        assert answer.confidence == pytest.approx(row["score"], rel=5e-3, abs=2e-3)


def test_the_command(work, photos, tmp_path):
    shutil.move(work, tmp_path / "moved")
    expected = said(tmp_path / "moved")
    folder = shutil.copytree(photos, tmp_path / "photos/deep").parent
    (folder / "notes.txt").write_text("passed over in a folder")
    done = run("identify.py", folder, f"--work={tmp_path / 'moved'}", "--json", "--threshold=0", "--top=2")
    answers = json.loads(done.stdout)
    assert [Path(one["photo"]).stem for one in answers] == sorted(expected.index)
    for one in answers:
        assert one["confidence"] == pytest.approx(expected["score"][Path(one["photo"]).stem], abs=2e-3)
        assert len(one["top"]) == len(one["nearest"]) == 2
        assert one["nearest"][0].keys() == {"id", "landmark", "name", "similarity", "shard"}
    one = answers[0]
    done = run("identify.py", one["photo"], f"--work={tmp_path / 'moved'}", "--threshold=0")
    assert done.stdout.startswith(
        f"{one['photo']}: {one['landmark']} {one['name']}, confidence {one['confidence']:.3f}"
    )
    assert one["nearest"][0]["id"] in done.stdout
    done = run("identify.py", one["photo"], f"--work={tmp_path / 'moved'}", "--threshold=1")
    assert ": none; the best is" in done.stdout
    (tmp_path / "moved/calibration.json").unlink()
    done = run("identify.py", one["photo"], f"--work={tmp_path / 'moved'}", "--threshold=0")
    assert "it is not calibrated" in done.stdout and not errors(done)


def test_photos_that_cannot_be_read_are_named_and_the_others_go_on(finished, photos, tmp_path):
    good = sorted(photos.iterdir())[0]
    (tmp_path / "text.jpg").write_text("no photo")
    bad = [tmp_path / "text.jpg", tmp_path / "gone.jpg"]
    done = run("identify.py", bad[0], good, bad[1], f"--work={finished}", "--json", check=False)
    assert done.returncode == 2
    for path, line in zip(bad, errors(done), strict=True):
        assert f"photo {path} cannot be read" in line
    answers = json.loads(done.stdout)
    assert [("error" in one) for one in answers] == [True, False, True]


def test_a_picture_of_the_nearest_train_photos(finished, photos, tmp_path, tiny_mirror):
    photo = sorted(photos.iterdir())[0]
    run("identify.py", photo, f"--work={finished}", f"--picture={tmp_path / 'out.png'}", "--top=3")
    with Image.open(tmp_path / "out.png") as picture:
        pixels = np.asarray(picture)
    for place in range(4):  # each is upright in its place
        assert pixels[60:160, place * 232 + 20 : place * 232 + 200].std() > 5
    done = run("identify.py", photo, f"--work={finished}", f"--picture={tmp_path / 'out.xyz'}", check=False)
    assert done.returncode == 2 and "give a name like out.png" in done.stderr
    done = run("identify.py", photos, f"--work={finished}", f"--picture={tmp_path / 'out.png'}", check=False)
    assert done.returncode == 2 and "--picture draws one photo" in done.stderr


def test_without_the_mirror_only_the_picture_is_missing(photos, tmp_path, tiny_mirror, work):
    text = (work / "recipe.toml").read_text()
    (work / "recipe.toml").write_text(text.replace(str(tiny_mirror), str(tmp_path / "gone")))
    photo = sorted(photos.iterdir())[0]
    done = run("identify.py", photo, f"--work={work}", f"--picture={tmp_path / 'out.png'}", check=False)
    assert done.returncode == 2 and done.stdout.startswith(f"{photo}: ")
    [line] = errors(done)
    assert line.startswith("error: no picture of train photos") and "gone" in line
    assert not (tmp_path / "out.png").exists()
    done = run("identify.py", photo, f"--work={work}", f"--picture={tmp_path / 'out.png'}", "--json", check=False)
    assert done.returncode == 2 and len(json.loads(done.stdout)[0]["top"]) == 3


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda work: (work / "model.keras").unlink(), "no trained model .*model.keras"),
        (lambda work: (work / "labels.csv").write_text("class,landmark_id\n0,10\n1,20\n2,40\n"), "another model"),
        (lambda work: (work / "gallery.npz").unlink(), "gallery.npz is not there: run recognition.py"),
        (lambda work: (work / "gallery.npz").write_bytes(b"x"), "gallery.npz .* not whole"),
        (lambda work: sorted(work.glob("features/train/*.npz"))[0].unlink(), "images_000.npz is not there"),
        (lambda work: spoil(sorted(work.glob("features/train/*.npz"))[0]), "not a whole features file|another model"),
        (
            lambda work: shutil.copy(work / "features/train/images_001.npz", work / "features/train/images_000.npz"),
            "other features",
        ),
        (
            lambda work: (work / "recipe.toml").write_text(
                (work / "recipe.toml").read_text().replace("votes = 1", "votes = 2")
            ),
            "other settings",
        ),
        (lambda work: (work / "train_label_to_category.csv").write_text("x"), "is not a CSV"),
    ],
)
def test_a_file_that_is_absent_or_stale_is_one_clear_line(work, photos, change, message):
    change(work)
    with pytest.raises(InputError, match=message):
        Identifier(work)


def test_wrong_arguments_are_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    for arguments, message in (
        ([tmp_path / "empty"], "holds no photo"),
        ([tmp_path / "a.jpg", f"--work={tmp_path / 'none'}"], "there is no trained model"),
        ([tmp_path / "a.jpg", "--top=0"], "'0' is no whole number of 1 or more"),
    ):
        done = run("identify.py", *arguments, check=False)
        assert done.returncode == 2
        [line] = errors(done)
        assert message in line
