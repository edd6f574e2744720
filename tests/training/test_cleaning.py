import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import identity, make_mirror

import cleaning
from landmarks.mirrors.folder import FolderMirror
from landmarks.running import command
from landmarks.running.command import InputError, Stopped
from landmarks.training import scenes as scenes_module
from landmarks.training.cleaning import clean, read_clean
from landmarks.training.scenes import Classifier, outdoor_votes, read_categories

# The landmarks of the tiny mirror are green (10), blue (20) and red (30): one channel is near 210, the others near 30.
# Each row is a channel's weights for the six categories, so that its three best are plain: red 0, 1, 2; green 2, 3, 0;
# blue 0, 5, 4. Even where all others help the runner-up with 3 x 30, 210 a step is not made up.
WEIGHTS = np.array([[3, 2, 1, 0, 0, 0], [1, 0, 3, 2, 0, 0], [3, 0, 0, 0, 1, 2]], "float32")
# Outdoor are 0, 1 and 5: of the top 3 that is two votes for red, one for green, two for blue.
CATEGORIES = "/a/airfield 2\n/a/alley 2\n/a/attic 1\n/b/bank_vault 1\n/b/bar 1\n/b/beach 2\n"
TOP3 = {"top": 3, "votes": 2}


def make_classifier(path: Path, weights=WEIGHTS, size=16) -> Path:
    head = keras.layers.Dense(weights.shape[1], use_bias=False)
    model = keras.Sequential([keras.Input((size, size, 3)), keras.layers.GlobalAveragePooling2D(), head])
    head.set_weights([weights])
    model.save(path)
    return path


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "io.txt").write_text(CATEGORIES)
    return {"classifier": make_classifier(folder / "scenes.keras"), "categories": folder / "io.txt"}


def ids_of(mirror: Path, *landmarks: int) -> dict[str, int]:
    train = FolderMirror(mirror).train()
    return {i: k for i, k in zip(train["id"], train["landmark_id"], strict=True) if k in landmarks}


def ids_in(path: Path) -> dict[str, int]:
    table = read_clean(path)
    return dict(zip(table["id"], table["landmark_id"], strict=True))


def test_votes_by_hand():
    outdoor = np.array([True, False, False, True])
    scores = np.array([[4, 3, 2, 1], [1, 2, 3, 4], [0.5, 0.5, 0.5, 0.5], [-1, -2, -3, -0.5]])
    assert outdoor_votes(scores, outdoor, 2).tolist() == [1, 1, 1, 2]  # of equal scores the first categories count
    assert outdoor_votes(scores, outdoor, 1).tolist() == [1, 1, 1, 1]
    assert outdoor_votes(scores, outdoor, 3).tolist() == [1, 1, 1, 2]
    assert outdoor_votes(scores, ~outdoor, 2).tolist() == [1, 1, 1, 0]


def test_the_class_size_rule_alone(tmp_path, capsys):
    mirror = make_mirror(tmp_path / "m", landmarks=3, train=4)
    train = pd.read_csv(mirror / "metadata/train.csv").sort_values("landmark_id", kind="stable")
    train.iloc[1:].to_csv(mirror / "metadata/train.csv", index=False)  # landmark 10 has 3 left, 20 and 30 have 4
    clean(str(mirror), tmp_path / "out.csv", min_photos=4)
    assert ids_in(tmp_path / "out.csv") == ids_of(mirror, 20, 30)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "landmark_id,images"
    assert [line.split(",")[0] for line in lines[1:]] == ["20", "30"]
    assert capsys.readouterr().out.splitlines()[-1].endswith("out.csv: 8 of 11 photos and 2 of 3 landmarks kept")
    assert not (tmp_path / "out.csv.parts").exists()
    with pytest.raises(InputError, match="no landmark of .* has 5 train photos"):
        clean(str(mirror), tmp_path / "other.csv", min_photos=5)
    assert not (tmp_path / "other.csv").exists()


def test_a_photo_stays_with_enough_outdoor_votes(tmp_path, tiny_mirror, scenes):
    out = tmp_path / "out.csv"
    kept = {2: (20, 30), 1: (10, 20, 30)}
    for votes, landmarks in kept.items():  # the second run needs other votes of the same classification
        clean(str(tiny_mirror), out, min_photos=8, top=3, votes=votes, **scenes)
        assert ids_in(out) == ids_of(tiny_mirror, *landmarks)
    out.unlink()
    with pytest.raises(InputError, match="no photo has 3 outdoor scenes among its top 3; 0 could not be .*--votes"):
        clean(str(tiny_mirror), out, min_photos=8, top=3, votes=3, **scenes)
    assert not out.exists()


def test_landmarks_are_counted_before_the_scene_filter_and_vanish_only_when_empty(tmp_path, scenes):
    mirror = make_mirror(tmp_path / "m", landmarks=3, train=4)
    train = pd.read_csv(mirror / "metadata/train.csv")
    green, blue, red = (train.loc[train["landmark_id"] == landmark, "id"].tolist() for landmark in (10, 20, 30))
    # Landmark 1: 4 photos of which one is outdoor; 2: 4 photos, none outdoor; 3: 3 photos, all outdoor.
    truth = {1: [*green[:3], blue[0]], 2: [green[3]], 3: blue[1:], 4: red}
    rows = [(i, "", landmark) for landmark, photos in truth.items() for i in photos]
    pd.DataFrame(rows, columns=["id", "url", "landmark_id"]).to_csv(mirror / "metadata/train.csv", index=False)
    clean(str(mirror), tmp_path / "out.csv", min_photos=4, **TOP3, **scenes)
    assert ids_in(tmp_path / "out.csv") == {blue[0]: 1, **dict.fromkeys(red, 4)}
    classified = [np.load(path)["ids"] for path in (tmp_path / "out.csv.parts").glob("*.npz")]
    assert set(np.concatenate(classified)) == {*green[:3], blue[0], *red}  # not the photos of landmarks left out
    clean(str(mirror), tmp_path / "all.csv", min_photos=1, **TOP3, **scenes)
    assert ids_in(tmp_path / "all.csv") == {blue[0]: 1, **dict.fromkeys(blue[1:], 3), **dict.fromkeys(red, 4)}


@pytest.mark.parametrize("end", [KeyboardInterrupt, Stopped])
def test_finished_shards_are_not_redone(tmp_path, tiny_mirror, scenes, monkeypatch, end):
    out, parts = tmp_path / "out.csv", tmp_path / "out.csv.parts"
    record, opened = scenes_module.record_skipped, []

    def interrupted(work, split, shard, unreadable):
        opened.append(shard)
        if len(opened) == 3:
            if end is KeyboardInterrupt:
                raise KeyboardInterrupt
            command.stop_event.set()
        record(work, split, shard, unreadable)

    monkeypatch.setattr(scenes_module, "record_skipped", interrupted)
    arguments = {"min_photos": 8, **TOP3, **scenes}
    with pytest.raises(end):
        clean(str(tiny_mirror), out, **arguments)
    command.stop_event.clear()
    assert not out.exists()
    done = {path: path.stat().st_mtime_ns for path in parts.glob("images_*.npz")}
    assert len(done) == (2 if end is KeyboardInterrupt else 3)
    (parts / "part-images_003.npz").write_bytes(b"half a file, as kill -9 leaves it")
    damaged = parts / "images_001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    done.pop(damaged)

    opened[:] = [""] * 10
    clean(str(tiny_mirror), out, **arguments)
    names = [f"images_{number:03d}" for number in range(6)]
    assert opened[10:] == [name for name in names if parts / f"{name}.npz" not in done]
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert ids_in(out) == ids_of(tiny_mirror, 20, 30)
    clean(str(tiny_mirror), out, **arguments)
    assert len(opened) == 10 + 6 - len(done)


def test_results_of_other_settings_are_never_mixed(tmp_path, tiny_mirror, scenes):
    out = tmp_path / "out.csv"
    given = {"min_photos": 8, **TOP3, **scenes}
    clean(str(tiny_mirror), out, **given)
    before = out.read_bytes()
    (tmp_path / "io.txt").write_text(CATEGORIES.replace("alley 2", "alley 1"))
    another_mirror = tmp_path / "another"
    shutil.copytree(tiny_mirror, another_mirror)
    for changed in (
        {"classifier": make_classifier(tmp_path / "other.keras", WEIGHTS + 1)},
        {"categories": tmp_path / "io.txt"},
        {"top": 2},
        {"min_photos": 7},
        {"mirror": str(another_mirror)},
    ):
        with pytest.raises(InputError, match="was begun with .*, now it is .*; delete it or give another file"):
            clean(**{"mirror": str(tiny_mirror), "out": out, **given, **changed})
    assert out.read_bytes() == before


def test_a_run_that_found_nothing_to_do_does_not_bind_the_next(tmp_path, tiny_mirror, scenes, serve):
    other = make_mirror(tmp_path / "other", landmarks=2, train=5)
    for mirror, match in ((serve(other).url, "has 8 train photos"), (str(tmp_path), "is no mirror with train photos")):
        with pytest.raises(InputError, match=match):
            clean(mirror, tmp_path / "out.csv", min_photos=8, **TOP3, **scenes)
    clean(serve(tiny_mirror).url, tmp_path / "out.csv", min_photos=8, **TOP3, **scenes)
    assert ids_in(tmp_path / "out.csv") == ids_of(tiny_mirror, 20, 30)
    assert not (tmp_path / "out.csv.parts/mirror").exists()


def test_unreadable_photos_are_left_out_counted_and_named(tmp_path, scenes, capsys):
    mirror = make_mirror(tmp_path / "m", landmarks=3, train=4)
    path = mirror / "train/images_000.tar"
    data = path.read_bytes()
    begin = data.index(b"\xff\xd8")
    path.write_bytes(data[:begin] + bytes(100) + data[begin + 100 :])
    with open(mirror / "metadata/train.csv", "a") as file:
        file.write(f"{identity(999)},,30\n")  # in no shard
    clean(str(mirror), tmp_path / "out.csv", min_photos=4, top=6, votes=1, **scenes)
    broken = pd.read_csv(tmp_path / "out.csv.parts/skipped.csv")["name"].tolist()
    assert len(broken) == 1
    assert ids_in(tmp_path / "out.csv").keys() == ids_of(mirror, 10, 20, 30).keys() - {*broken, identity(999)}
    summary = capsys.readouterr().out.splitlines()[-1]
    assert summary.endswith("11 of 13 photos and 3 of 3 landmarks kept; 2 could not be read or are in no shard")


def test_a_photo_in_two_shards_counts_once(tmp_path, scenes):
    mirror = make_mirror(tmp_path / "m", landmarks=3, train=4)
    shutil.copy(mirror / "train/images_000.tar", mirror / "train/images_006.tar")
    clean(str(mirror), tmp_path / "out.csv", min_photos=4, **TOP3, **scenes)
    assert ids_in(tmp_path / "out.csv") == ids_of(mirror, 20, 30)


def test_a_keras_classifier_is_given_rgb_as_it_is(tmp_path):
    classifier = Classifier(make_classifier(tmp_path / "x.keras", np.eye(3, dtype="float32"), size=8), 3)
    assert classifier.image_size == 8
    photos = np.array([[0, 128, 255], [1, 2, 3]], "uint8")[:, None, None].repeat(8, 1).repeat(8, 2)
    np.testing.assert_allclose(classifier(photos), [[0, 128, 255], [1, 2, 3]], rtol=1e-6)


def test_the_image_size_is_the_files_own_or_the_one_given(tmp_path):
    free = make_classifier(tmp_path / "free.keras", size=None)
    assert Classifier(free, 6).image_size == 224
    assert Classifier(free, 6, 32).image_size == 32
    fixed = make_classifier(tmp_path / "fixed.keras", size=16)
    assert Classifier(fixed, 6).image_size == Classifier(fixed, 6, 16).image_size == 16
    with pytest.raises(InputError, match=r"its input is \[None, 16, 16, 3\], photos are \[32, 32, 32, 3\]"):
        Classifier(fixed, 6, 32)


def make_onnx(path: Path, shape: list, axes: list[int], weights=WEIGHTS) -> Path:
    """The mean over `axes` times `weights`."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, numpy_helper, floats = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["photos"], ["mean"], axes=axes, keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
        ],
        "scenes",
        [helper.make_tensor_value_info("photos", floats, shape)],
        [helper.make_tensor_value_info("scores", floats, [shape[0], weights.shape[1]])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("shape", [["batch", 3, 16, 16], [2, 3, 16, 16], ["batch", 3, "height", "width"]])
def test_an_onnx_classifier_with_channels_first_is_given_imagenet_input(tmp_path, shape):
    classifier = Classifier(make_onnx(tmp_path / "x.onnx", shape, [2, 3], np.eye(3, dtype="float32")), 3)
    assert classifier.image_size == (16 if 16 in shape else 224)
    photos = np.zeros((2, classifier.image_size, classifier.image_size, 3), "uint8")
    photos[0] = [255, 0, 51]
    expected = [
        [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225],
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
    ]
    np.testing.assert_allclose(classifier(photos), expected, rtol=1e-4)
    photos[0, 5, 9] = [255, 255, 102]
    classifier._run = lambda given: given
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.4 - 0.406) / 0.225]
    np.testing.assert_allclose(classifier(photos)[0, :, 5, 9], expected, rtol=1e-4)


def test_an_onnx_classifier_with_channels_last_is_given_rgb_as_it_is(tmp_path):
    classifier = Classifier(make_onnx(tmp_path / "x.onnx", ["batch", 4, 4, 3], [1, 2], np.eye(3, dtype="float32")), 3)
    photos = np.full((1, 4, 4, 3), [255, 0, 51], "uint8")
    np.testing.assert_allclose(classifier(photos), [[255, 0, 51]], rtol=1e-6)


def test_an_onnx_classifier_that_takes_one_photo_at_a_time(tmp_path, tiny_mirror, scenes):
    given = {**scenes, "classifier": make_onnx(tmp_path / "x.onnx", [1, 3, 16, 16], [2, 3])}
    clean(str(tiny_mirror), tmp_path / "out.csv", min_photos=8, **TOP3, **given)
    assert ids_in(tmp_path / "out.csv") == ids_of(tiny_mirror, 20, 30)


def test_onnxruntime_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="pip install onnxruntime"):
        Classifier(tmp_path / "x.onnx", 6)


def test_files_that_are_no_classifier(tmp_path, scenes):
    (tmp_path / "broken.keras").write_bytes(b"broken")
    (tmp_path / "x.h5").write_bytes(b"")
    code = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x[:, 0, 0])])
    code.save(tmp_path / "code.keras")
    vector = keras.Sequential([keras.Input((3,)), keras.layers.Dense(6)])
    vector.save(tmp_path / "vector.keras")
    spoilt = make_classifier(tmp_path / "nan.keras", WEIGHTS * np.nan)
    for name, match in {
        "broken.keras": "broken.keras does not work as a scene classifier",
        "code.keras": "code.keras does not work as a scene classifier.*safe",
        "vector.keras": r"\[None, 3\] is not \(batch, height, width, 3\)",
        "x.h5": "x.h5 is no .keras or .onnx file",
        "missing.keras": "missing.keras is no .keras or .onnx file",
    }.items():
        with pytest.raises(InputError, match=f"(?s){match}"):
            Classifier(tmp_path / name, 6)
    with pytest.raises(InputError, match=r"scores \(6,\) for a photo, but there are 365 categories"):
        Classifier(scenes["classifier"], 365)
    with pytest.raises(InputError, match="gives NaN"):
        Classifier(spoilt, 6)(np.ones((1, 16, 16, 3), "uint8"))


def test_broken_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="x.onnx does not work as a scene classifier"):
        Classifier(tmp_path / "x.onnx", 6)


def test_categories(tmp_path):
    path = tmp_path / "io.txt"
    path.write_text(CATEGORIES)
    assert read_categories(path).tolist() == [True, True, False, False, False, True]
    for text, match in {
        "": "line 1,",
        "/a/airfield 2\n/a/alley 3\n": "line 2,",
        "/a/airfield 2\n\n/a/alley 1\n": "line 2,",
        "airfield 2\n": "line 1,",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=f"io.txt, {match} is not like `/a/airfield 2`"):
            read_categories(path)
    path.write_bytes(b"/a/airfield\xff 2\n")
    with pytest.raises(InputError, match="io.txt cannot be read"):
        read_categories(path)
    with pytest.raises(InputError, match="nowhere.txt cannot be read"):
        read_categories(tmp_path / "nowhere.txt")


def test_read_clean_takes_the_form_of_the_data_set(tmp_path):
    path = tmp_path / "train_clean.csv"
    path.write_text("landmark_id,images\n1,17660ef415d37059 92b6290d571448f6\n203092,cd41bf948edc0340\n")
    table = read_clean(path)
    assert table["id"].tolist() == ["17660ef415d37059", "92b6290d571448f6", "cd41bf948edc0340"]
    assert table["landmark_id"].tolist() == [1, 1, 203092]
    assert table["landmark_id"].dtype == "int64"
    assert list(table) == ["id", "landmark_id"] and table.index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "landmark_id,images\n",
        "landmark_id,ids\n1,abc1\n",
        "id,landmark_id\nabc1,1\n",
        "landmark_id,images\nx,abc1\n",
        "landmark_id,images\n1.5,abc1\n",
        "landmark_id,images\n99999999999999999999,abc1\n",
        "landmark_id,images\n,abc1\n",
        "landmark_id,images\n1,\n",
        "landmark_id,images\n1\n",
        "landmark_id,images\n1,abc1  abc2\n",
        "landmark_id,images\n1,abc1 ../abc2\n",
        'landmark_id,images\n1,"abc1,abc2"\n',
        "landmark_id,images\n1,abc1,abc2\n",
        "landmark_id,images\n1,abc1\n2,abc2,abc3\n",
        "landmark_id,images\n1,abc1 abc1\n",
        "landmark_id,images\n1,abc1\n2,abc1\n",
        "landmark_id,images\n1,abc1\n1,abc2\n",
        "landmark_id,images\n1,\xff\n",
    ],
)
def test_read_clean_refuses_other_files(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match="x.csv"):
        read_clean(path)


def test_read_clean_of_no_file(tmp_path):
    with pytest.raises(InputError, match="nowhere.csv"):
        read_clean(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classifier", "CLASSIFIER"], "--categories"),
        (["--categories", "CATEGORIES"], "--classifier"),
        (["--min-photos", "0"], "at least 1"),
        (["--votes", "0"], "at least 1"),
        (["--image-size", "0"], "at least 1"),
        (["--votes", "6"], "at most --top"),
        (["--top", "7", "--classifier", "CLASSIFIER", "--categories", "CATEGORIES"], "--top 7 is more than the 6"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, tiny_mirror, scenes, monkeypatch, capsys, options, message):
    places = {"CLASSIFIER": str(scenes["classifier"]), "CATEGORIES": str(scenes["categories"])}
    options = [places.get(option, option) for option in options]
    monkeypatch.setattr(sys, "argv", ["cleaning.py", str(tiny_mirror), str(tmp_path / "out.csv"), *options])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        command.run(cleaning.main)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1 and message in error
    assert not any(tmp_path.iterdir())


def test_an_unusable_place_is_noticed_before_the_work(tmp_path, tiny_mirror):
    with pytest.raises(InputError, match="is a folder"):
        clean(str(tiny_mirror), tmp_path, min_photos=8)
    with pytest.raises(InputError, match="is no folder"):
        clean(str(tmp_path / "nowhere"), tmp_path / "out.csv")
