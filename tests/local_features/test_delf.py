import keras
import numpy as np
import pytest
from conftest import texture
from PIL import Image

from landmarks.local_features import delf
from landmarks.networks import layers
from landmarks.networks.efficientnet_lite import EfficientNetLite0, preprocess_input
from landmarks.networks.engines import Compiled
from landmarks.running.command import InputError


def extract(model, photo, points):
    return delf.extractor(model, points)([photo])[0]


def matches(a, b):
    """Rows of points that are each other's nearest, in a plain way."""
    similarity = a.descriptors @ b.descriptors.T
    there, back = similarity.argmax(axis=1), similarity.argmax(axis=0)
    rows = np.flatnonzero(back[there] == np.arange(len(there)))
    return a.points[rows], b.points[there[rows]]


@pytest.fixture(scope="module")
def efficientnet():
    """DELF of ImageNet's EfficientNet-Lite0 with the norm as its attention, without PCA."""
    features = delf.stride_16_features(EfficientNetLite0(include_top=False))
    return delf.build(layers.Normalization.like(preprocess_input), features, delf.FeatureNorm())


@pytest.mark.parametrize(
    "backbone, end",
    [
        (lambda: EfficientNetLite0(include_top=False, weights=None), "blocks_10_add"),
        (lambda: keras.applications.ResNet50(include_top=False, weights=None), "conv4_block6_out"),
        (lambda: keras.applications.VGG16(include_top=False, weights=None), "block5_conv3"),
    ],
)
def test_features_are_those_of_the_stride_16_stage(backbone, end):
    features = delf.stride_16_features(backbone())
    assert features.layers[-1].name == end
    assert not features.trainable_weights
    assert features.compute_output_spec(keras.KerasTensor((1, 64, 96, 3))).shape[1:3] == (4, 6)


def test_a_backbone_without_such_a_stage_is_refused():
    photos = keras.Input((None, None, 3))
    with pytest.raises(InputError, match="small has no stage with a stride of 16"):
        delf.stride_16_features(keras.Model(photos, keras.layers.Conv2D(4, 8, 8)(photos), name="small"))


def test_photos_moved_by_a_stride_move_the_features_by_a_cell(efficientnet):
    photo = np.asarray(texture(0, 528, 512))
    left, right = (
        np.asarray(efficientnet.predict_on_batch(part[None])["descriptors"])[0]
        for part in (photo[:, :512], photo[:, 16:])
    )
    seen = 11  # cells of half a receptive field of 339 pixels, within which the borders are seen
    np.testing.assert_allclose(left[seen:-seen, seen + 1 : -seen], right[seen:-seen, seen : -seen - 1], atol=1e-4)


def test_centres_are_right(efficientnet):
    """A mirrored photo's features lie at mirrored places, and those of a photo of twice the size at twice the place."""
    image = texture(1, 320, 256)
    found = extract(efficientnet, np.asarray(image), 1000)
    here, there = matches(found, extract(efficientnet, np.asarray(image)[:, ::-1], 1000))
    sums = here[:, 0] + there[:, 0]
    assert len(sums) > 100
    assert abs(np.median(sums) - 319) < 3  # with cells centred where padding puts them, at 16 i + 15, it is 334
    here, there = matches(found, extract(efficientnet, np.asarray(image.resize((640, 512))), 1000))
    assert len(here) > 100
    assert np.abs(np.median(there + 0.5 - 2 * (here + 0.5), axis=0)).max() < 6


def test_a_known_affine_map_is_found(efficientnet):
    image = texture(2, 480, 360)
    turn, shrink = np.radians(8), 0.85
    forth = np.array([
        [shrink * np.cos(turn), -shrink * np.sin(turn), 70],
        [shrink * np.sin(turn), shrink * np.cos(turn), 10],
        [0, 0, 1],
    ])  # fmt: skip
    warped = image.transform(
        image.size, Image.Transform.AFFINE, np.linalg.inv(forth)[:2].ravel(), Image.Resampling.BICUBIC
    )
    a, b = (extract(efficientnet, np.asarray(photo), 1000) for photo in (image, warped))
    here, there = matches(a, b)
    errors = np.linalg.norm(here @ forth[:2, :2].T + forth[:2, 2] - there, axis=1)
    assert len(errors) > 100
    assert np.median(errors) < 6
    assert (errors < 12).mean() > 0.7


def test_features_are_the_best_cells_within_the_photo(efficientnet):
    photo = np.asarray(texture(4, 100, 70))
    everything = extract(efficientnet, photo, 10**6)
    # Cells whose centres, 8 pixels in, lie in levels of 25 x 18, 35 x 25, 50 x 35, 71 x 49, 100 x 70, 141 x 99 and
    # 200 x 140.
    assert len(everything.points) == 2 * 1 + 2 * 2 + 3 * 2 + 4 * 3 + 6 * 4 + 9 * 6 + 12 * 9
    assert (everything.points >= 0).all() and (everything.points < [100, 70]).all()
    np.testing.assert_allclose(np.linalg.norm(everything.descriptors, axis=1), 1, atol=1e-5)
    best = extract(efficientnet, photo, 10)
    np.testing.assert_array_equal(best.points, everything.points[:10])
    assert (best.points.dtype, best.descriptors.dtype) == (np.float32, np.float32)
    assert extract(efficientnet, photo[:1, :1], 10).points.shape == (0, 2)


@pytest.mark.parametrize("on_accelerator", [False, True])
def test_photos_of_one_shape_go_through_the_network_together(efficientnet, monkeypatch, on_accelerator):
    photos = [np.asarray(texture(number, *sides)) for number, sides in enumerate([(100, 70), (128, 60), (70, 100)] * 2)]
    expected = [extract(efficientnet, photo, 50) for photo in photos]
    monkeypatch.setattr(delf, "accelerated", lambda: on_accelerator)
    monkeypatch.setitem(delf.PIXELS, "CPU", 1)
    shapes, compiled = [], Compiled(efficientnet)

    def network(given):
        shapes.append(given[0].shape)
        return compiled(given)

    found = delf.extract(network, photos, 50)
    largest = [shape for shape in shapes if max(shape[1:3]) == 256]  # 200 x 140, 256 x 120, 140 x 200
    if on_accelerator:
        assert sorted(largest) == [(2, 128, 256, 3), (2, 192, 256, 3), (2, 256, 192, 3)]
        assert {shape[0] for shape in shapes} <= {1, 2, 4}
    else:
        assert {shape[0] for shape in shapes} == {1} and len(largest) == 6
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.descriptors, other.descriptors, atol=1e-5)
        np.testing.assert_allclose(one.points, other.points)
    assert delf.extract(network, [], 50) == []
