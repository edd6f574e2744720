import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import identity, make_mirror

from landmarks.mirrors.folder import FolderMirror
from landmarks.running import command
from landmarks.running.command import InputError, Stopped
from landmarks.training import scenes as scenes_module
from landmarks.training.cleaning import clean, read_clean

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
    another_mirror = make_mirror(tmp_path / "another", train=9)
    shutil.copytree(tiny_mirror, tmp_path / "moved")
    clean(str(tmp_path / "moved"), out, **given)
    for changed in (
        {"classifier": make_classifier(tmp_path / "other.keras", WEIGHTS + 1)},
        {"categories": tmp_path / "io.txt"},
        {"top": 2},
        {"min_photos": 7},
        {"mirror": str(another_mirror)},
    ):
        with pytest.raises(InputError, match="was begun with .*, now it is .*; delete it or give another file"):
            clean(**{"mirror": str(tiny_mirror), "out": out, **given, **changed})
    (tmp_path / "out.csv.parts/settings.txt").write_bytes(b"\xff")  # no UTF-8
    with pytest.raises(InputError, match="was begun with .*; delete it"):
        clean(str(tiny_mirror), out, **given)
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


def test_an_onnx_classifier_that_takes_one_photo_at_a_time(tmp_path, tiny_mirror, scenes):
    given = {**scenes, "classifier": make_onnx(tmp_path / "x.onnx", [1, 3, 16, 16], [2, 3])}
    clean(str(tiny_mirror), tmp_path / "out.csv", min_photos=8, **TOP3, **given)
    assert ids_in(tmp_path / "out.csv") == ids_of(tiny_mirror, 20, 30)


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


def test_an_unusable_place_is_noticed_before_the_work(tmp_path, tiny_mirror):
    with pytest.raises(InputError, match="is a folder"):
        clean(str(tiny_mirror), tmp_path, min_photos=8)
    with pytest.raises(InputError, match="is no folder"):
        clean(str(tmp_path / "nowhere"), tmp_path / "out.csv")
