"""Photos that are added to a finished work folder: found, named, taken out again, whenever a command is killed."""

import io
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scripts
import tiny  # noqa: F401
from conftest import ROOT, extract, jpeg
from PIL import Image

from benchmarks import growing as kills
from landmarks.mirrors import added
from landmarks.neighbours.identification import Identifier
from landmarks.running.command import InputError
from landmarks.running.features_file import load_features, made_from, save_features

SETTINGS = [
    *scripts.PLAIN, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=8", "--epochs=1",
    "--learning-rate=3e-3",
]  # fmt: skip


def run(script: str, *arguments, check: bool = True, **options):
    done = scripts.run(ROOT / script, *arguments, **options)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def grow(*arguments) -> list[str]:
    return run("retrieval.py", *arguments).stdout.splitlines()


def refused(*arguments) -> str:
    done = run("retrieval.py", *arguments, check=False)
    assert done.returncode == 2
    return done.stderr.splitlines()[-1]


def photo(seed: int, channels=(0, 1, 2)) -> bytes:
    """Of something that is in no photo of the mirror, where one channel at most is bright; or with these channels."""
    noise = np.random.default_rng(seed).integers(0, 60, (24, 32, 3), dtype=np.uint8)
    noise[..., channels] += 180
    encoded = io.BytesIO()
    Image.fromarray(noise).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def finished(tiny_mirror, tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("finished") / "work"
    run("recognition.py", f"--work={work}", f"--mirror={tiny_mirror}", *SETTINGS)
    return work


@pytest.fixture
def work(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "work")


@pytest.fixture(scope="module")
def more(tmp_path_factory) -> Path:
    """Three photos of a new landmark, two of one that is known, one of none, and what is no photo."""
    folder = tmp_path_factory.mktemp("more")
    for name, seed, count, channels in (
        ("Church", 10, 3, [0, 1, 2]), ("Landmark 2", 20, 1, [2]), ("30", 30, 1, [0]), ("", 40, 1, []),
    ):  # fmt: skip
        (folder / name).mkdir(exist_ok=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(photo(seed + number, channels))
    (folder / "Church/text.jpg").write_text("no photo")
    return folder


def test_photos_are_added_once_and_identify_names_them(work, more):
    before = Identifier(work).identify(photo(10), threshold=0)
    assert grow("add", work, more)[0] == "+6 photos, 1 landmark"
    table = added.read(work).set_index("url")
    assert table["landmark_id"].dropna().to_dict() == {
        str(more / name): number
        for name, number in {
            "Church/0.png": 31, "Church/1.png": 31, "Church/2.png": 31, "Landmark 2/0.png": 20, "30/0.png": 30,
        }.items()
    }  # fmt: skip
    assert table["category"].unique().tolist() == ["", "Landmark 3", "Church", "Landmark 2"]
    answer = Identifier(work).identify(photo(10), threshold=0)
    assert (answer.landmark, answer.name) == (31, "Church")
    assert answer.nearest[0].shard == "added" and answer.nearest[0].similarity == pytest.approx(1, abs=2e-3)
    state = (work / "added/photos.csv").read_bytes()
    again = grow("add", work, more)
    assert again[0] == "+0 photos, 0 landmarks" and "6 a copy of a photo of its landmark" in again[1]
    assert (work / "added/photos.csv").read_bytes() == state
    church = table.index.str.contains("Church")
    gone = table["id"][church].tolist()
    assert grow("remove", work, gone[0], "abc0") == [
        "-1 photo, of 1 landmark", "not among the photos that were added: abc0",
    ]  # fmt: skip
    assert grow("remove", work, "--landmark=Church") == ["-2 photos, of 1 landmark"]
    assert grow("remove", work, "--landmark=20") == ["-1 photo, of 1 landmark"]
    assert grow("remove", work, "--landmark=Church") == [
        "-0 photos, of 0 landmarks", "not among the photos that were added: Church",
    ]  # fmt: skip
    assert grow("remove", work, "--all") == ["-2 photos, of 1 landmark"]
    assert not list((work / "added/photos").rglob("*.jpg"))
    assert Identifier(work).identify(photo(10), threshold=0) == before
    assert grow("add", work, more)[0] == "+6 photos, 1 landmark"


def test_retrieval_finds_them_and_recognition_stays_as_it_was(work, more, tiny_mirror, tmp_path):
    query = pd.read_csv(tiny_mirror / "metadata/test.csv")["id"][0]
    run("retrieval.py", f"--work={work}")
    plain = pd.read_csv(work / "retrieval.csv", index_col="id")["images"].str.split()
    (tmp_path / "theirs").mkdir()
    for shard in (tiny_mirror / "test").glob("*.tar"):
        extract(shard, tmp_path / "test")
    (source,) = (tmp_path / "test").rglob(f"{query}.jpg")
    shutil.copy(source, tmp_path / "theirs")
    grow("add", work, more)
    grow("add", work, tmp_path / "theirs")
    table = added.read(work)
    same = table["id"][table["url"].str.endswith(f"{query}.jpg")].item()
    assert (work / f"added/photos/{same[0]}/{same[1]}/{same[2]}/{same}.jpg").read_bytes() == source.read_bytes()
    run("retrieval.py", f"--work={work}")
    found = pd.read_csv(work / "retrieval.csv", index_col="id")["images"].str.split()
    assert found[query][0] == same
    for row, before in zip(found, plain, strict=True):
        assert set(row) == {*before, *table["id"]}
    made = [(work / name).read_bytes() for name in ("recognition.csv", "calibration.json")]
    run("recognition.py", f"--work={work}")
    assert [(work / name).read_bytes() for name in ("recognition.csv", "calibration.json")] == made
    assert Identifier(work).identify(photo(10)).name == "Church"
    run("retrieval.py", f"--work={work}", "--rerank-inliers=3", "--extractor=sift")
    assert set(pd.read_csv(work / "retrieval.csv", index_col="id")["images"][query].split()) == set(found[query])
    kept = work / "local/sift/index/added.npz"
    assert kept.exists()
    grow("remove", work, "--all")
    assert not kept.exists()
    run("retrieval.py", f"--work={work}")
    assert pd.read_csv(work / "retrieval.csv", index_col="id")["images"].str.split().equals(plain)


@pytest.mark.parametrize(
    "settings",
    [
        ["--recognizer=centres"],
        ["--penalty=winners", "--non-landmarks={}/non_landmarks.txt"],
        ["--penalty=winners", "--non-landmarks={}/non_landmarks.txt", "--recognizer=centres"],
        ["--scales=1,1.5", "--whitening=pca", "--votes=2"],
        ["--beside={}/still.toml", "--model-weights=1,2"],
    ],
    ids=" ".join,
)
def test_whatever_recognises(work, more, tiny_mirror, tmp_path, settings):
    index = pd.read_csv(tiny_mirror / "metadata/index.csv")["id"]
    (tmp_path / "non_landmarks.txt").write_text("\n".join(index[:4]) + "\n")
    (tmp_path / "still.toml").write_text(
        'backbone = "Tiny"\nweights = "none"\nimage_size = 48\nloss = "none"\nwhitening = "lda"\n'
    )
    run("recognition.py", f"--work={work}", *(one.format(tmp_path) for one in settings))
    before = Identifier(work).identify(jpeg(5), threshold=0)
    grow("add", work, more)
    identifier = Identifier(work)
    assert identifier.identify(photo(11), threshold=0).name == "Church"
    assert identifier.identify(jpeg(5), threshold=0).confidence >= before.confidence - 1e-3
    features = load_features(work / "added/added.npz")
    identity = features.ids[0].item()
    (photo_kept,) = added.photos_of(work, [identity]).values()
    alone = identifier._embed(photo_kept).embeddings  # as it does with single photos
    np.testing.assert_allclose(features.embeddings[:1], alone, atol=2e-3)
    run("retrieval.py", f"--work={work}")
    assert identity in (work / "retrieval.csv").read_text()


def test_after_a_new_training_they_are_embedded_anew(work, more, tiny_mirror):
    grow("add", work, more)
    before = load_features(work / "added/added.npz")
    other = before._replace(embeddings=np.zeros_like(before.embeddings))
    save_features(work / "added/added.npz", other, made_from(work / "added/added.npz"))
    (work / "model.keras").unlink()
    with pytest.raises(InputError):
        Identifier(work)
    run("recognition.py", f"--work={work}")
    now = load_features(work / "added/added.npz")
    assert now.ids.tolist() == before.ids.tolist() and now.embeddings.any()
    assert Identifier(work).identify(photo(10)).name == "Church"


def test_features_of_another_model_are_one_clear_line(work, more):
    grow("add", work, more)
    save_features(work / "added/added.npz", load_features(work / "added/added.npz"), "another")
    with pytest.raises(InputError, match="added.npz goes with another model .* run recognition.py"):
        Identifier(work)
    run("retrieval.py", f"--work={work}")
    assert Identifier(work).identify(photo(10)).name == "Church"


def test_what_is_wrong_is_one_clear_line(work, more, tmp_path):
    (tmp_path / "empty").mkdir()
    shutil.copytree(more, tmp_path / "deep/more")
    assert "holds no photo" in refused("add", work, tmp_path / "empty")
    assert "is no folder" in refused("add", work, tmp_path / "gone")
    assert "--nested" in refused("add", work, tmp_path / "deep")
    assert "there is no trained model" in refused("add", tmp_path / "empty", more)
    assert "name the photos to take out" in refused("remove", work)
    assert not (work / "added").exists()
    assert grow("add", work, tmp_path / "deep", "--nested")[0] == "+6 photos, 4 landmarks"
    names = (work / "train_label_to_category.csv").read_text().replace("Landmark 1", "Landmark 2")
    (work / "train_label_to_category.csv").write_text(names)
    (tmp_path / "two/Landmark 2").mkdir(parents=True)
    (tmp_path / "two/Landmark 2/0.png").write_bytes(photo(50))
    assert "landmarks [10, 20] have the name Landmark 2" in refused("add", work, tmp_path / "two")
    (work / "added/photos.csv").write_text("id,landmark,category,hash,url\nabc0,x,,0,\n")
    assert "photos.csv is no table of added photos" in refused("add", work, more)
    assert grow("remove", work, "--all") == ["-0 photos, of 0 landmarks"]
    assert added.read(work).empty and not list((work / "added").rglob("*.jpg"))


def test_a_head_names_no_new_landmark(work, more, tmp_path):
    run("recognition.py", f"--work={work}", "--recognizer=head")
    assert "names landmarks by the model's head" in refused("add", work, more)
    (tmp_path / "loose").mkdir()
    shutil.copy(more / "0.png", tmp_path / "loose")
    assert grow("add", work, tmp_path / "loose") == ["+1 photo, 0 landmarks"]
    run("retrieval.py", f"--work={work}")
    assert added.read(work)["id"][0] in (work / "retrieval.csv").read_text()


def test_one_at_a_time(work, more):
    told = []

    def meanwhile(process):
        while not (work / ".lock.json").exists() or not (work / ".lock.json").read_text():
            pass
        os.kill(process, signal.SIGSTOP)
        told.append(run("retrieval.py", "remove", work, "--all", check=False, fork=False))
        os.kill(process, signal.SIGCONT)

    run("retrieval.py", "add", work, more, meanwhile=meanwhile)
    assert told[0].returncode == 2 and "is in use by retrieval.py" in told[0].stderr.splitlines()[-1]
    assert len(added.read(work)) == 6


def test_killed_at_any_moment_it_is_as_before_or_after_and_goes_on(tmp_path):
    case = kills.Case(tmp_path)
    every = sum(case.operations.values()) // 10
    told = list(kills.kills(case, every))
    assert {name for name, _, _ in told} == {"add", "remove"} and len(told) >= 10
    assert not [one for one in told if one[2]]
