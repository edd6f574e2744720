import io
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from landmarks.mirrors import open
from landmarks.running import command
from landmarks.running.command import InputError
from landmarks.running.locks import held
from landmarks.sample import photos as sample

make_small_sample = partial(open.make_sample, landmarks=3, views=(5, 7), others=6)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "tiny"
    make_small_sample(out, seed=3)
    return out


def test_two_runs_write_the_same_files(mirror, tmp_path):
    make_small_sample(tmp_path / "again", seed=3)
    files = {path.relative_to(mirror): path.read_bytes() for path in mirror.rglob("*") if path.is_file()}
    again = tmp_path / "again"
    assert files == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def blank(urls):
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "JPEG")
    return dict.fromkeys(urls, data.getvalue())


def test_the_default_counts_and_splits(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "render", blank)
    open.make_sample(tmp_path / "out")
    metadata, truth = tmp_path / "out/metadata", tmp_path / "out/ground_truth"
    train = pd.read_csv(metadata / "train.csv")
    index = pd.read_csv(metadata / "index.csv").merge(
        pd.read_csv(metadata / "index_image_to_landmark.csv"), on="id", how="left"
    )
    test = pd.read_csv(truth / "recognition_solution_v2.1.csv")
    assert len(set(train["id"]) | set(index["id"]) | set(test["id"])) == len(train) + len(index) + len(test)
    assert train["id"].str.fullmatch("[0-9a-f]{16}").all()
    counts = pd.DataFrame(
        {name: split.value_counts() for name, split in
         {"train": train["landmark_id"], "index": index["landmark_id"], "test": test["landmarks"]}.items()}
    )  # fmt: skip
    assert len(counts) == 24 and counts.notna().all(axis=None)
    assert counts.sum(axis=1).between(20, 30).all() and counts.sum(axis=1).nunique() > 4
    shares = counts.div(counts.sum(axis=1), axis=0)
    assert shares[["index", "test"]].sub(0.2).abs().le(0.03).all(axis=None) and counts["test"].ge(3).all()
    assert (index["landmark_id"].isna().sum(), test["landmarks"].isna().sum()) == (50, 100)
    categories = pd.read_csv(metadata / "train_label_to_category.csv")
    assert set(categories["landmark_id"]) == set(train["landmark_id"]) and categories["category"].is_unique


def test_another_seed_gives_other_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "render", blank)
    for seed in (0, 1):
        open.make_sample(tmp_path / str(seed), seed)
    one, two = (pd.read_csv(tmp_path / seed / "metadata/train.csv") for seed in "01")
    assert not set(one["id"]) & set(two["id"]) and set(one["landmark_id"]) != set(two["landmark_id"])


def test_a_folder_that_exists_or_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(command.InputError, match="is there already"):
        make_small_sample(tmp_path)
    with pytest.raises(command.InputError, match="-1"):
        open.make_sample(tmp_path / "out", seed=-1)
    assert not any(tmp_path.iterdir())


def test_of_two_at_once_the_second_is_refused(tmp_path):
    (tmp_path / "part-out/new").mkdir(parents=True)  # what a killed one left is no hindrance
    with held(tmp_path / "part-out"), pytest.raises(InputError, match="part-out is in use by .*, process"):
        make_small_sample(tmp_path / "out")
    make_small_sample(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").glob(".lock*"))


def test_a_stop_leaves_no_mirror_behind(tmp_path):
    command.stop_event.set()
    with pytest.raises(command.Stopped):
        make_small_sample(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_known_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "render", lambda _: pytest.fail("rendered in vain"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        open.make_sample(tmp_path / "file" / "out")
