import io

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from landmarks.mirrors.images import decode
from landmarks.networks import layers
from landmarks.networks.layers import GeM, Normalization, RandomCropFlip, Squash


def photos(count=4, size=40):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_a_crop_is_a_mirrored_or_plain_square_of_its_own_photo():
    images = np.arange(2 * 6 * 8 * 3, dtype=np.uint8).reshape(2, 6, 8, 3)
    layer = RandomCropFlip(crop=4, flip=True, seed=3)
    seen = [set(), set()]
    for _ in range(200):
        for number, crop in enumerate(ops.convert_to_numpy(layer(images, training=True))):
            matches = [
                (top, left, flip)
                for top in range(3) for left in range(5) for flip in (False, True)
                if (crop == images[number, top : top + 4, left : left + 4][:, :: -1 if flip else 1]).all()
            ]  # fmt: skip
            assert len(matches) == 1
            seen[number].add(matches[0])
    assert all(len(places) == 3 * 5 * 2 for places in seen)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(images)), images)


def test_a_resized_crop_is_a_rectangle_of_its_own_photo_as_large_as_asked_for():
    """Photos whose colours are their coordinates tell where each crop begins and ends."""
    across, down = np.meshgrid(np.arange(200), np.arange(160))
    images = np.repeat(np.stack([across, down, across], axis=-1)[None].astype(np.uint8), 40, axis=0)
    crops = ops.convert_to_numpy(RandomCropFlip(crop=64, flip=True, seed=3, area=0.3)(images, training=True))
    assert crops.shape == (40, 64, 64, 3) and crops.dtype == np.uint8
    wide, high = np.ptp(crops[..., 0], axis=(1, 2)) / 200, np.ptp(crops[..., 1], axis=(1, 2)) / 160
    mirrored = crops[:, 32, 5, 0] > crops[:, 32, -5, 0]
    assert 0.25 < (wide * high).min() < 0.4 and 0.8 < (wide * high).max() <= 1
    assert 0.7 < (wide / high).min() < 0.85 and 1.15 < (wide / high).max() < 1.4
    assert 10 < mirrored.sum() < 30
    middle = crops[:, 32, 32]  # a pixel is the mean of those that it covers: all of its channels lie in one place
    np.testing.assert_allclose(middle[:, 0], middle[:, 2])
    assert np.ptp(crops[..., 1].min(axis=(1, 2)).astype(int)) > 30  # they begin in many places


def test_a_resized_crop_of_all_is_the_photo_as_it_is_decoded_at_that_size():
    photo = Image.fromarray(photos(1, 90)[0] // 2 + 64)  # Pillow clips between rows and columns what leaves 0 to 255
    expected = np.asarray(photo.resize((60, 60), Image.Resampling.BICUBIC))
    layer = RandomCropFlip(crop=60, flip=False, area=1.0)
    layer._uniform = lambda batch: ops.full((batch, 1), 0.5)  # a square
    found = ops.convert_to_numpy(layer(np.asarray(photo)[None], training=True))[0]
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_no_crop_and_no_flip_change_nothing():
    images = photos()
    np.testing.assert_array_equal(ops.convert_to_numpy(RandomCropFlip(0, False)(images, training=True)), images)


@pytest.mark.parametrize("module", ["resnet", "resnet_v2", "vgg16", "mobilenet_v2", "efficientnet", "densenet"])
def test_normalization_does_what_the_application_does(module):
    preprocess_input = getattr(keras.applications, module).preprocess_input
    expected = preprocess_input(photos().astype("float32"))
    layer = Normalization.like(preprocess_input)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(photos())), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("p", [1.0, 3.0, 7.5])
def test_gem_is_the_power_mean(p):
    features = np.random.default_rng(0).uniform(-1, 4, (2, 3, 5, 7)).astype("float32")
    expected = (np.maximum(features, 1e-6).astype("float64") ** p).mean(axis=(1, 2)) ** (1 / p)
    np.testing.assert_allclose(ops.convert_to_numpy(GeM(p)(features)), expected, rtol=1e-4)


def test_gem_learns_its_power_and_stays_in_float32_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        layer = GeM()
        pooled = layer(np.full((1, 4, 4, 2), 200, "float16"))  # 200 cubed is no float16
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert [weight.path.split("/")[-1] for weight in layer.trainable_weights] == ["p"]
    np.testing.assert_allclose(ops.convert_to_numpy(pooled), 200, rtol=1e-4)


def test_the_cosine_head_takes_the_nearest_of_each_class_centres():
    head = layers.CosineHead(classes=4, centres=3)
    embeddings = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    found = ops.convert_to_numpy(head(embeddings))
    centres = ops.convert_to_numpy(head.kernel).reshape(6, 3, 4)
    for row, embedding in enumerate(embeddings):
        for landmark in range(4):
            cosines = [
                embedding @ centre / np.linalg.norm(embedding) / np.linalg.norm(centre)
                for centre in centres[:, :, landmark].T
            ]
            assert found[row, landmark] == pytest.approx(max(cosines), abs=1e-6)


def test_a_cosine_head_in_parts_has_the_cosines_of_a_whole_one():
    whole, parts = layers.CosineHead(classes=10, centres=3), layers.CosineHead(classes=10, centres=3, parts=4)
    embeddings = np.random.default_rng(0).normal(size=(5, 64)).astype("float32")
    whole(embeddings), parts(embeddings)
    assert parts.kernel.shape == (64, 3, 12)
    spread = [float(ops.std(head.kernel)) for head in (whole, parts)]
    assert spread[0] == pytest.approx(spread[1], rel=0.1)
    parts.kernel.assign(np.pad(ops.convert_to_numpy(whole.kernel).reshape(64, 3, 10), ((0, 0), (0, 0), (0, 2))))
    np.testing.assert_allclose(
        ops.convert_to_numpy(parts(embeddings)), ops.convert_to_numpy(whole(embeddings)), atol=1e-6
    )


def test_signed_gem_keeps_the_sign():
    features = np.array([[[[-2.0, 1.0, 3.0]], [[1.0, 1.0, -3.0]], [[-2.0, 1.0, 0.0]]]], "float32")  # 3 places
    found = ops.convert_to_numpy(GeM(p=3.0, signed=True)(features))
    np.testing.assert_allclose(found, [[-((15 / 3) ** (1 / 3)), 1.0, 0.0]], atol=1e-5)
    positive = np.abs(features) + 1
    plain, signed = (ops.convert_to_numpy(GeM(signed=signed)(positive)) for signed in (False, True))
    np.testing.assert_allclose(signed, plain, rtol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (97, 61), (50, 20), (32, 200)], ids=str)
def test_a_photo_is_squashed_as_it_is_decoded(shape):
    """Along rows first, as Pillow before 13 does always and later ones where that is less work."""
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels = keras.Input(batch_shape=(None, None, 3), dtype="uint8")
    (found,) = ops.convert_to_numpy(keras.Model(pixels, Squash(32)(pixels))(photo))
    assert found.dtype == np.uint8
    expected = Image.fromarray(photo)
    for size in ((32, shape[0]), (32, 32)):
        expected = expected.resize(size, Image.Resampling.BICUBIC)
    differs = found != np.asarray(expected)
    assert differs.mean() < 0.01
    assert np.abs(found[differs].astype(int) - np.asarray(expected)[differs]).max(initial=0) <= 2
    encoded = io.BytesIO()
    Image.fromarray(photo).save(encoded, "PNG")
    decoded = decode(encoded.getvalue(), 32).astype(int)
    assert found.shape == decoded.shape and np.abs(found - decoded).mean() < 0.6  # of 256; the photo is noise
