import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_mirror, write_features
from hypothesis import given
from hypothesis import strategies as st

from landmarks.mirrors.open import open_mirror
from landmarks.neighbours import nonlandmarks
from landmarks.neighbours.nonlandmarks import (
    FarReferences,
    References,
    read_ids,
    reference_halves,
    references,
    serving_themselves,
)
from landmarks.running.command import InputError
from landmarks.running.features_file import Features, load_features, save_features
from landmarks.scoring.solutions import Solution


@st.composite
def solutions(draw):
    usage = draw(st.lists(st.tuples(st.sampled_from("public private ignored".split()), st.booleans()), max_size=20))
    halves = {"public": {}, "private": {}}
    ignored = set()
    for number, (half, shows) in enumerate(usage):
        if half == "ignored":
            ignored.add(f"test{number}")
        else:
            halves[half][f"test{number}"] = [number, number + 1] if shows else []
    return Solution(halves["public"], halves["private"], ignored)


def assert_no_scored_photo_is_its_own_reference(solution, groups):
    for group in groups:
        assert not {*solution.public, *solution.private} & group.ids & group.serve


@given(solutions())
def test_references_are_the_other_halfs_photos_of_no_landmark(solution):
    test_ids = [*solution.public, *solution.private, *solution.ignored, "not in the solution"]
    groups = reference_halves(solution, test_ids)
    assert sorted(photo for group in groups for photo in group.serve) == sorted(test_ids)  # each by one group
    for half, other in ((solution.public, solution.private), (solution.private, solution.public)):
        for group in groups:
            if group.serve & set(half):
                assert group.ids == {i for i in other if other[i] == []}
    assert_no_scored_photo_is_its_own_reference(solution, groups)
    assert solution.without(serving_themselves(groups)) == solution


@given(solutions(), st.lists(st.tuples(*[st.sets(st.integers(0, 25).map(lambda n: f"test{n}"))] * 2), max_size=3))
def test_a_photo_that_serves_its_own_score_is_not_scored(solution, sets):
    groups = [References(ids, ["test"], serve) for ids, serve in sets]
    scored = solution.without(serving_themselves(groups))
    assert_no_scored_photo_is_its_own_reference(scored, groups)
    for half in ("public", "private"):
        before, after = getattr(solution, half), getattr(scored, half)
        assert after.items() <= before.items()
        assert all(any(i in group.ids and i in group.serve for group in groups) for i in set(before) - set(after))
        assert set(before) - set(after) <= scored.ignored


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_ids_of_a_file(tmp_path):
    assert read_ids(write(tmp_path / "ids", "abc", "0123456789abcdef")) == {"abc", "0123456789abcdef"}
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbfabc\r\nabd")
    assert read_ids(tmp_path / "windows") == {"abc", "abd"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id\nabc\n", "line 1: 'id'"),
        (b"abc\n\nabd\n", "line 2: ''"),
        (b"abc\nabd \n", "line 2: 'abd '"),
        (b"abc\nabc\n", "line 2: 'abc' comes twice"),
        (b"abc,1\n", "line 1"),
        (b"../../etc/passwd\n", "line 1"),
        (b"a" * 10**6, "line 1: 'aaa"),
        (b"abc\n\xff\xfe\n", "on each line"),
        (b"", "is empty"),
    ],
)
def test_a_malformed_file_is_one_clear_line(tmp_path, content, message):
    (tmp_path / "ids").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_ids(tmp_path / "ids")
    assert len(str(error.value)) < 300 + len(str(tmp_path)) and "\n" not in str(error.value)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=str(path)):
            read_ids(path)


def test_the_setting_says_which_photos(tmp_path):
    folder = make_mirror(tmp_path / "mirror")
    mirror = open_mirror(str(folder))
    test, train, index = (mirror.ids(split) for split in ("test", "train", "index"))
    assert references("", mirror) == []

    ids = write(tmp_path / "ids", test[1], train[0], train[3])
    assert references(str(ids), mirror) == [References({test[1], train[0], train[3]}, ["test", "train"], set(test))]
    ids = write(tmp_path / "ids", index[2])
    assert references(str(ids), mirror) == [References({index[2]}, ["index"], set(test))]
    with pytest.raises(InputError, match="ids names 'elsewhere'.*mirror"):
        references(str(write(tmp_path / "ids", test[1], "elsewhere")), mirror)

    none = set(index) - set(pd.read_csv(folder / "metadata/index_image_to_landmark.csv")["id"])
    assert len(none) == 4  # what a mirror that we made says of its own index; those of test are to be judged
    assert references("auto", mirror) == [References(none, ["index"], set(test))]
    (folder / "metadata/non_landmarks.csv").unlink()
    assert references("auto", mirror) == [FarReferences(["index"], set(test))]
    shutil.rmtree(folder / "index")
    assert references("auto", open_mirror(str(folder))) == [FarReferences(["train"], set(test))]

    halves = references("other-half", mirror)
    assert [group.splits for group in halves] == [["test"], ["test"]]
    assert halves[0].serve | halves[1].serve == set(test)
    assert sum(len(group.ids) for group in halves) == 4  # test photos of no landmark

    path = folder / "ground_truth/recognition_solution_v2.1.csv"
    path.write_text("id,landmarks,Usage\n" + "".join(f"{photo},10,Public\n" for photo in test))
    with pytest.raises(InputError, match="each photo has a landmark; give a file"):
        references("other-half", mirror)
    path.unlink()
    with pytest.raises(InputError, match="no recognition solution; give a file"):
        references("other-half", mirror)


def test_features_of_the_references(tmp_path):
    rng = np.random.default_rng(0)
    files, embeddings = [], []
    for number, count in enumerate((3, 0, 4)):
        ids = np.array([f"test{number}-{row}" for row in range(count)], dtype=str)
        embeddings.append(rng.standard_normal((count, 4)).astype(np.float16))
        files.append(tmp_path / f"{number}.npz")
        scores = np.arange(count, dtype=np.float32)
        save_features(files[-1], Features(ids, embeddings[-1], np.arange(count) + 10 * number, scores))
    nonlandmarks.write_features(files, {"test0-1", "test2-0", "test2-3", "unreadable"}, tmp_path / "references.npz")
    written = load_features(tmp_path / "references.npz")
    assert written.ids.tolist() == ["test0-1", "test2-0", "test2-3"]
    np.testing.assert_array_equal(written.embeddings, np.stack([embeddings[0][1], embeddings[2][0], embeddings[2][3]]))
    assert written.landmark.tolist() == [1, 20, 23] and written.score.tolist() == [1, 0, 3]
    with pytest.raises(InputError, match="none of the 2 photos"):
        nonlandmarks.write_features(files, {"unreadable", "elsewhere"}, tmp_path / "none.npz")
    assert not (tmp_path / "none.npz").exists()


def towards(rng, centres, noise):
    embeddings = centres + noise * rng.standard_normal(centres.shape)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


@pytest.fixture
def world(tmp_path):
    """12 landmarks with 10 train photos each; of the 200 index photos the first 20 are of nothing."""
    rng = np.random.default_rng(0)
    centres, crowd = rng.standard_normal((12, 32)), rng.standard_normal((1, 32))
    landmark = np.repeat(np.arange(12), 10)
    none = rng.standard_normal((20, 32))
    index = towards(rng, np.concatenate([none, centres[rng.integers(0, 12, 180)]]), 0.3)
    files = {
        "train": write_features(tmp_path, "train", towards(rng, centres[landmark], 0.3)),
        "index": write_features(tmp_path, "index", index),
    }
    train = pd.DataFrame({"id": [f"train{n}" for n in range(120)], "landmark_id": landmark})
    return files, train, rng, centres, crowd


def test_photos_far_from_every_landmark(world, tmp_path):
    files, train, *_ = world
    found = nonlandmarks.find_far(FarReferences(["index"], {"t"}), files, train, 2, tmp_path / "penalty")
    assert found.serve == {"t"} and found.ids == {f"index{n}" for n in range(20)}


def test_too_few_photos_to_look_at_are_none(world, tmp_path):
    files, train, *_ = world
    files["index"] = write_features(tmp_path, "few", np.eye(32)[:20])
    assert nonlandmarks.find_far(FarReferences(["index"], set()), files, train, 1, tmp_path / "penalty").ids == set()
