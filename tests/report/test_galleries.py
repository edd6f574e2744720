"""Which photos are chosen, and the train photo nearest to each."""

import numpy as np
import pandas as pd
import pytest
from conftest import write_features

from landmarks.neighbours.gallery import Gallery
from landmarks.report import galleries


def ranking(right: list[bool]) -> pd.DataFrame:
    return pd.DataFrame({"right": right}, index=[f"p{number}" for number in range(len(right))])


def test_the_surest_and_the_least_sure_are_shown_and_none_twice():
    found = galleries.galleries(ranking([True] * 12 + [False] * 10 + [True]), True)
    right, least, wrong = found.values()
    assert right == [f"p{number}" for number in range(9)]
    assert least == ["p22", "p11", "p10", "p9"]
    assert wrong == [f"p{number}" for number in range(12, 21)]
    assert list(galleries.galleries(ranking([False] * 3), False).values()) == [["p0", "p1", "p2"], []]


def test_queries_are_the_best_the_median_and_the_worst():
    precision = [0.1, 0.9, 0.5, 1.0, 0.9, 0.2, 0.4, 0.3, 0.6, 0.7, 0.8]
    photos = pd.DataFrame({"precision": precision, "relevant": [1] * 4 + [7] + [1] * 6}, index=list("abcdefghijk"))
    best, median, worst = galleries.queries(photos, True).values()
    assert best == ["d", "e", "b"]  # of equal ones that with more to be found
    assert median == ["j", "i", "c"] and worst == ["h", "f", "a"]
    assert list(galleries.queries(photos.head(3), True).values()) == [["b"], ["c"], ["a"]]
    assert list(galleries.queries(photos.head(1), True).values()) == [["a"], [], []]
    assert len(galleries.queries(photos, False)["Some queries"]) == 9
    assert galleries.queries(photos.head(0), False) == {"Some queries": []}


def test_the_nearest_train_photo_is_one_that_votes(tmp_path):
    test = write_features(tmp_path, "test", [[1, 0], [0, 1]])
    train = write_features(tmp_path, "train", [[0.9, 0.1], [1, 0], [0, 0.8]])
    kept = Gallery(train, np.array([10, -1, 20]), 0.0, True)
    found = galleries.nearest_train_photos(["test0", "test1", "unread"], test, kept)
    assert set(found) == {"test0", "test1"}
    assert found["test0"][:2] == ("train0", 10) and found["test0"].similarity == pytest.approx(0.9)
    assert found["test1"][:2] == ("train2", 20)
    assert galleries.nearest_train_photos(["test0"], test, None) == {}
    with pytest.raises(ValueError, match="others than the train photos"):
        galleries.nearest_train_photos(["test0"], test, kept._replace(landmark=np.array([10])))


def test_features_tell_what_shard_a_photo_is_in(tmp_path):
    files = write_features(tmp_path, "images_000", [[1.0]]) + write_features(tmp_path, "images_001", [[1.0]])
    assert galleries.shards_of(["images_0010", "absent"], files) == {"images_0010": "images_001"}
