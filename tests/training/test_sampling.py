import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise

import faiss
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from landmarks.training.sampling import Subspace, epoch_batches, find_subspaces


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_centres(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dimension)))


def photos_of(sizes) -> list[list[str]]:
    """Ids that tell their class."""
    return [[f"{number}-{photo}" for photo in range(size)] for number, size in enumerate(sizes)]


def class_of(photo: str) -> int:
    return int(photo.split("-")[0])


def meetings_of(batches) -> list[tuple[int, ...]]:
    return [tuple(sorted({class_of(photo) for photo in batch})) for batch in batches]


def everything(classes: int) -> list[Subspace]:
    return [Subspace(np.arange(classes), np.arange(0))]


def as_lists(subspaces) -> list[tuple[list[int], list[int]]]:
    return [(subspace.own.tolist(), subspace.nearest.tolist()) for subspace in subspaces]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(0, 2**40),
)
def test_what_holds_of_every_epoch(sizes, p, k, count, seed):
    photos = photos_of(sizes)
    subspaces = find_subspaces(random_centres(len(sizes), 4), count, p, seed)
    batches = epoch_batches(photos, subspaces, p, k, seed, epoch=0)
    p = min(p, len(sizes))
    members = [{*subspace.own, *subspace.nearest} for subspace in subspaces]
    streams = {number: [] for number in range(len(sizes))}
    for batch in batches:
        turns = [batch[begin : begin + k] for begin in range(0, len(batch), k)]
        classes = [class_of(turn[0]) for turn in turns]
        assert len(batch) == p * k
        assert len(set(classes)) == p
        assert any(set(classes) <= classes_of_one for classes_of_one in members)
        for number, turn in zip(classes, turns, strict=True):
            assert {class_of(photo) for photo in turn} == {number}
            if sizes[number] >= k:
                assert len(set(turn)) == k
            streams[number] += turn
    for number, stream in streams.items():
        size = sizes[number]
        whole = len(stream) - len(stream) % size
        assert whole  # no photo is lost
        for begin in range(0, whole, size):
            assert sorted(stream[begin : begin + size]) == sorted(photos[number])
        assert len(set(stream[whole:])) == len(stream) - whole
    assert batches == epoch_batches(photos, subspaces, min(p, len(sizes)), k, seed, epoch=0)


def test_nobody_takes_extra_turns_without_need():
    # 24 classes of 7 photos have 24 x 2 turns of 4: 8 batches of 6 classes, and up to one more that two turns ask for
    assert len(epoch_batches(photos_of([7] * 24), everything(24), 6, 4, 0, 0)) in (8, 9)
    assert len(epoch_batches(photos_of([3] * 24), everything(24), 6, 4, 0, 0)) == 4
    # the one large class asks for 10 batches; the others fill them up
    batches = epoch_batches(photos_of([40, 4, 4, 4]), everything(4), 3, 4, 0, 0)
    assert len(batches) == 10
    assert all(0 in meeting for meeting in meetings_of(batches))


def test_a_class_that_helped_out_has_had_its_turn():
    each_alone = [Subspace(np.array([0]), np.array([1])), Subspace(np.array([1]), np.array([0]))]
    (batch,) = epoch_batches(photos_of([4, 4]), each_alone, 2, 4, 0, 0)
    assert sorted(batch) == sorted(sum(photos_of([4, 4]), []))


def test_seed_and_epoch_make_the_batches():
    arguments = photos_of([9] * 12), everything(12), 4, 3
    epochs = [epoch_batches(*arguments, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for one, other in combinations(epochs, 2):
        assert one != other
        assert set(meetings_of(one)) != set(meetings_of(other))
    assert epochs[3] == epoch_batches(*arguments, 1, 1)


def test_the_hash_seed_changes_nothing():
    program = (
        "import numpy as np; from landmarks.training.sampling import *\n"
        "subspaces = find_subspaces(np.random.default_rng(0).normal(size=(20, 4)), 3, 4, 0)\n"
        "print(epoch_batches([[f'{i}-{j}' for j in range(5)] for i in range(20)], subspaces, 4, 2, 0, 0))"
    )
    root = ROOT
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=root, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_large_classes_meet_small_ones_in_many_combinations():
    large, small, p = 6, 60, 6
    photos = photos_of([80] * large + [4] * small)  # 20 turns each, and 1
    for seed in range(3):
        meetings = meetings_of(epoch_batches(photos, everything(large + small), p, 4, seed, 0))
        assert max(Counter(meetings).values()) <= 3
        pairs = Counter(pair for meeting in meetings for pair in combinations(meeting, 2))
        with_small = [sum(pairs[number, other] for other in range(large, large + small)) for number in range(large)]
        assert min(with_small) >= 15  # a third of all turns are of small classes


def test_batches_of_the_subspaces_are_shuffled_among_each_other():
    halves = [Subspace(np.arange(10), np.arange(0)), Subspace(np.arange(10, 20), np.arange(0))]
    batches = epoch_batches(photos_of([40] * 20), halves, 5, 4, 0, 0)
    first = [meeting[0] < 10 for meeting in meetings_of(batches)]
    changes = sum(one != other for one, other in pairwise(first))
    assert changes > len(first) / 4  # one half after the other would change once


def test_a_class_without_photos_is_named():
    with pytest.raises(ValueError, match="class 1 has no photos"):
        epoch_batches([["a"], [], ["b"]], everything(3), 2, 2, 0, 0)


def test_planted_subspaces_are_found_with_their_nearest_helpers(capfd):
    # 0 and 2 point to x, 1, 3 and 4 to y; of the first two 2 leans to y, of the others 4 leans to x most, then 3
    centres = unit([[1, 0], [0, 1], [1, 0.01], [0.2, 1], [0.3, 1]])
    for seed in (0, 5, 2**35):
        assert sorted(as_lists(find_subspaces(centres, 2, 4, seed))) == [([0, 2], [4, 3]), ([1, 3, 4], [2])]
        assert sorted(as_lists(find_subspaces(centres, 2, 3, seed))) == [([0, 2], [4]), ([1, 3, 4], [])]
    out, err = capfd.readouterr()
    assert out == err == ""


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 15), st.integers(0, 3), st.integers(1, 60))
def test_subspaces_are_a_partition_with_helpers(classes, count, p, seed, different):
    centres = random_centres(different, 3)[np.arange(classes) % different]  # equal centres among them
    subspaces = find_subspaces(centres, count, p, seed)
    assert 1 <= len(subspaces) <= count
    assert sorted(np.concatenate([subspace.own for subspace in subspaces])) == list(range(classes))
    for own, nearest in subspaces:
        assert len(own) > 0
        assert len({*own, *nearest}) == len(own) + len(nearest) == max(len(own), min(p, classes))
    assert as_lists(find_subspaces(centres, count, p, seed)) == as_lists(subspaces)


def test_the_number_of_threads_changes_nothing():
    centres = random_centres(3000, 64)
    threads = faiss.omp_get_max_threads()
    try:
        found = []
        for number in (1, 2, 4):
            faiss.omp_set_num_threads(number)
            found.append(as_lists(find_subspaces(centres, 20, 12, 0)))
    finally:
        faiss.omp_set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    assert as_lists(find_subspaces(centres, 20, 12, 1)) != found[0]
