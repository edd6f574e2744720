import numpy as np
import pytest

from generators import in_threads
from local_features import LocalFeatures, none_found
from matching import Matching, inliers, match

SIDE = 512  # pixels of a photo
STRICT = Matching(ratio=1.0, least=0.5, pixels=4.0)
AFFINE = np.array([[0.8, -0.3, 60], [0.3, 0.9, -20], [0, 0, 1]])
HOMOGRAPHY = np.array([[0.8, -0.3, 60], [0.3, 0.9, -20], [6e-4, -3e-4, 1]])
IDENTITY = np.eye(3)


def apply(transformation, points):
    """A 3 x 3 map of points (N, 2)."""
    mapped = np.column_stack([points, np.ones(len(points))]) @ transformation.T
    return mapped[:, :2] / mapped[:, 2:]


def unit(rng, *shape):
    descriptors = rng.standard_normal(shape).astype(np.float32)
    return descriptors / np.linalg.norm(descriptors, axis=-1, keepdims=True)


def features(points, descriptors):
    return LocalFeatures(np.asarray(points, np.float32), np.asarray(descriptors, np.float32))


def pair(*groups, wrong=0, seed=0):
    """Two photos whose row i matches row i: for each (transformation, count, noise) some points, then wrong matches."""
    rng = np.random.default_rng(seed)
    points, mapped = [rng.uniform(0, SIDE, (wrong, 2))], [rng.uniform(0, SIDE, (wrong, 2))]
    for transformation, count, noise in reversed(groups):
        points.insert(0, rng.uniform(0, SIDE, (count, 2)))
        mapped.insert(0, apply(transformation, points[0]) + rng.normal(0, noise, (count, 2)))
    descriptors = unit(rng, sum(map(len, points)), 64)
    return features(np.concatenate(points), descriptors), features(np.concatenate(mapped), descriptors)


def by_a_plain_loop(a, b, how):
    found = []
    distances = np.array([[np.sqrt(((one - other) ** 2).sum()) for other in b.descriptors] for one in a.descriptors])
    for row in range(len(a.points)):
        nearest, second = np.argsort(distances[row])[:2]
        mutual = distances[:, nearest].argmin() == row
        similar = a.descriptors[row] @ b.descriptors[nearest] >= how.least
        distinct = how.ratio == 1 or distances[row, nearest] < how.ratio * distances[row, second]
        if mutual and similar and distinct:
            found.append([row, nearest])
    return found


@pytest.mark.parametrize("ratio", [1.0, 0.9, 0.6])
@pytest.mark.parametrize("least", [0.0, 0.9])
def test_matches_are_those_of_a_plain_loop(ratio, least):
    rng = np.random.default_rng(0)
    a = features(rng.uniform(0, SIDE, (80, 2)), unit(rng, 80, 5))
    near = a.descriptors[rng.permutation(80)[:60]] + 0.3 * rng.standard_normal((60, 5))
    b = features(rng.uniform(0, SIDE, (60, 2)), near / np.linalg.norm(near, axis=1, keepdims=True))
    how = Matching(ratio, least, 4.0)
    expected = by_a_plain_loop(a, b, how)
    assert 5 < len(expected) < 60
    assert match(a, b, how).tolist() == expected


def test_ratio_and_mutual_nearest_by_hand():
    def at(*degrees):
        angles = np.radians(degrees)
        return features(np.zeros((len(degrees), 2)), np.stack([np.cos(angles), np.sin(angles)], axis=1))

    a, b = at(0, 90), at(10, 20, 95)
    # 0 is nearest to 10, sin 5 / sin 10 = 0.502 times as far as the next; 90 to 95, sin 2.5 / sin 35 = 0.076 times.
    assert match(a, b, Matching(0.51, 0.0, 4.0)).tolist() == [[0, 0], [1, 2]]
    assert match(a, b, Matching(0.50, 0.0, 4.0)).tolist() == [[1, 2]]
    assert match(b, a, Matching(1.0, 0.0, 4.0)).tolist() == [[0, 0], [2, 1]]  # 20 is nearest to 0, which prefers 10
    assert match(a, b, Matching(1.0, 0.99, 4.0)).tolist() == [[1, 2]]  # cos 10 is 0.985
    assert match(a, at(10), Matching(1.0, 0.0, 4.0)).shape == (0, 2)


@pytest.mark.parametrize(
    "kind, transformation, true, wrong",
    [
        ("affine", AFFINE, 100, 200),
        ("affine", AFFINE, 10, 100),
        ("affine", IDENTITY * [-1, -1, 1], 40, 40),  # half a turn
        ("affine", IDENTITY * [5, 5, 1], 40, 40),
        ("homography", HOMOGRAPHY, 100, 200),
        ("homography", AFFINE, 20, 20),
    ],
)
def test_a_known_map_is_recovered_among_wrong_matches(kind, transformation, true, wrong):
    a, b = pair((transformation, true, 0.5), wrong=wrong)
    order = np.random.default_rng(1).permutation(len(b.points))  # the strongest are not the true ones
    found = inliers(a, features(b.points[order], b.descriptors[order]), STRICT._replace(transformation=kind))
    assert (order[found[:, 1]] == found[:, 0]).all()
    there = apply(transformation, a.points)
    near = np.flatnonzero(np.linalg.norm(there - b.points, axis=1) < 8)  # a few wrong ones by chance
    assert set(range(true)) <= set(found[:, 0].tolist()) <= set(near.tolist())
    ends = b.points[found[:, 0]] - there[found[:, 0]]
    assert np.abs(ends.mean(axis=0)).max() < 0.5


def test_a_homography_is_no_affine_map():
    a, b = pair((HOMOGRAPHY, 100, 0))
    assert len(inliers(a, b, STRICT._replace(transformation="homography"))) == 100
    assert len(inliers(a, b, STRICT)) < 60


@pytest.mark.parametrize("kind", ["affine", "homography"])
@pytest.mark.parametrize("pixels, kept", [(4.0, 70), (20.0, 80)])
def test_inliers_lie_within_so_many_pixels(kind, pixels, kept):
    a, b = pair((AFFINE, 60, 0), (AFFINE + [[0, 0, 2], [0, 0, 0], [0, 0, 0]], 10, 0), wrong=20)
    moved = apply(AFFINE, a.points[70:]) + [0, 10]
    moved[10:] += [30, 0]
    found = inliers(a, features(np.vstack([b.points[:70], moved]), b.descriptors), Matching(1.0, 0.5, pixels, kind))
    assert found.tolist() == [[row, row] for row in range(kept)]


def test_a_point_counts_once():
    a, b = pair((AFFINE, 12, 0))
    rng = np.random.default_rng(2)
    descriptors = unit(rng, 48, 64)
    shaken = rng.uniform(-0.3, 0.3, (48, 2))  # SIFT gives a point a descriptor for each orientation
    spots = np.tile(np.round(a.points), (4, 1))
    many = features(spots + shaken, descriptors)
    assert len(match(many, many, STRICT)) == 48
    assert len(inliers(many, many, STRICT)) == len(np.unique(spots, axis=0)) == 12
    apart = features(np.random.default_rng(3).uniform(0, SIDE, (48, 2)), descriptors)
    assert len(inliers(many, apart, STRICT)) <= 12
    assert len(inliers(apart, many, STRICT)) <= 12


@pytest.mark.parametrize("kind", ["affine", "homography"])
@pytest.mark.parametrize(
    "impossible",
    [
        np.array([[-1, 0, SIDE], [0, 1, 0], [0, 0, 1]]),  # the photo turned over
        np.array([[0.05, 0, 200], [0, 0.05, 200], [0, 0, 1]]),  # shrunk to 26 pixels
        np.array([[15, 0, 0], [0, 15, 0], [0, 0, 1]]),
        np.array([[1, 0, 0], [0.5, 0.02, 0], [0, 0, 1]]),  # onto a line
        np.array([[0, 0, 200], [0, 0, 300], [0, 0, 1]]),  # onto a spot
    ],
    ids=["mirror image", "shrunk", "stretched", "line", "spot"],
)
def test_a_map_that_no_two_photos_have_gives_none(kind, impossible):
    a, b = pair((impossible, 60, 0))
    assert len(match(a, b, STRICT)) == 60
    assert inliers(a, b, STRICT._replace(transformation=kind)).shape == (0, 2)


def test_a_symmetric_front_is_not_lost_to_its_mirror_image():
    mirrored = np.array([[-1, 0, SIDE], [0, 1, 0], [0, 0, 1]])
    a, b = pair((IDENTITY, 40, 1), (mirrored, 60, 0), wrong=20)
    found = inliers(a, b, STRICT)
    near = np.linalg.norm(a.points - b.points, axis=1) < 8  # on the axis both maps are right
    assert np.isin(np.arange(40), found[:, 0]).mean() > 0.9
    assert near[found[:, 0]].all()


@pytest.mark.parametrize("kind, least", [("affine", 3), ("homography", 4)])
def test_too_few_matches_give_none(kind, least):
    how = STRICT._replace(transformation=kind)
    for count in range(least):
        assert inliers(*pair((AFFINE, count, 0)), how).shape == (0, 2)
    assert len(inliers(*pair((AFFINE, least + 1, 0)), how)) == least + 1
    assert inliers(none_found(), none_found(), how).shape == (0, 2)
    assert inliers(pair((AFFINE, 9, 0))[0], none_found(), how).shape == (0, 2)


@pytest.mark.parametrize("kind", ["affine", "homography"])
def test_photos_that_have_nothing_in_common_have_few_inliers(kind):
    how = STRICT._replace(transformation=kind)
    assert max(len(inliers(*pair(wrong=300, seed=seed), how)) for seed in range(5)) < 10


def test_one_seed_gives_one_answer():
    other = AFFINE + [[0, 0, 30], [0, 0, 0], [0, 0, 0]]
    a, b = pair((AFFINE, 30, 0.5), (other, 30, 0.5), wrong=200)  # two maps that are as good
    seeds = list(range(12))
    first = [inliers(a, b, STRICT, seed).tolist() for seed in seeds]
    again = in_threads(lambda seed: inliers(a, b, STRICT, seed).tolist(), seeds, ahead=12, threads=4)
    assert list(again) == first
    assert len({str(rows) for rows in first}) > 1
