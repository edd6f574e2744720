import h5py
import keras
import numpy as np
import pytest

from landmarks.networks import backbones
from landmarks.networks.backbones import build_backbone
from landmarks.running.command import InputError
from landmarks.running.settings import ModelSettings

PHOTOS = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")


def randomly(model):
    """The model with weights that tell."""
    for number, weight in enumerate(model.weights):
        if weight.dtype == "float32":
            weight.assign(np.random.default_rng(number).uniform(0.5, 1, weight.shape) * (-1) ** number / 4 + 0.5)
    return model


def write_h5(model, path):
    """As keras.applications publishes weights: HDF5 of Keras 1 and 2, a group for each layer, all named in their order.

    Like resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5.
    """
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}_{number}:0" for number in range(len(layer.weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, values in zip(names, layer.get_weights(), strict=True):
                group.create_dataset(name, data=values)
    return path


@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50"])
@pytest.mark.parametrize("has_top", [True, False])
def test_published_weights_with_a_head_and_without(tmp_path, name, has_top):
    published = randomly(getattr(keras.applications, name)(include_top=has_top, weights=None, input_shape=(64, 64, 3)))
    path = write_h5(published, tmp_path / "weights.h5")
    base, _ = build_backbone(ModelSettings(backbone=name, weights=str(path)))
    of = {layer.name: layer for layer in published.layers}
    for layer in filter(lambda layer: layer.weights, base.layers):
        for ours, theirs in zip(layer.get_weights(), of[layer.name].get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    # before the head comes the last layer of the backbone
    headless = keras.Model(published.input, published.get_layer(base.layers[-1].name).output)
    np.testing.assert_allclose(base(PHOTOS), headless(PHOTOS), rtol=1e-4, atol=1e-4)


def test_efficientnet_divides_by_the_deviation(tmp_path):
    """Its files have it in place of the variance, which Keras makes up for only where it downloads them itself."""
    published = keras.applications.EfficientNetB0(include_top=False, weights=None)
    normalization = next(layer for layer in published.layers if isinstance(layer, keras.layers.Normalization))
    mean, deviation = np.array([0.485, 0.456, 0.406], "float32"), np.array([0.229, 0.224, 0.225], "float32")
    normalization.set_weights([mean, deviation, *normalization.get_weights()[2:]])
    path = write_h5(published, tmp_path / "weights.h5")
    base, _ = build_backbone(ModelSettings(backbone="EfficientNetB0", weights=str(path)))
    place = next(layer for layer in base.layers if isinstance(layer, keras.layers.Normalization))
    found = keras.Model(base.input, place.output)(255 * PHOTOS)
    np.testing.assert_allclose(found, (PHOTOS - mean) / deviation, rtol=1e-4, atol=1e-4)


def test_weights_of_another_net_are_refused_whole(tmp_path):
    other = randomly(keras.applications.MobileNet(include_top=True, weights=None))
    path = write_h5(other, tmp_path / "weights.h5")
    with pytest.raises(InputError, match="weights.h5 does not hold weights of mobilenetv2"):
        build_backbone(ModelSettings(backbone="MobileNetV2", weights=str(path)))


def test_a_file_that_points_to_another_is_refused(tmp_path):
    net = keras.applications.MobileNet(include_top=False, weights=None, alpha=0.25)
    path = write_h5(net, tmp_path / "weights.h5")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.zeros(3)
    with h5py.File(path, "r+") as file:
        name = net.layers[1].name
        dataset = file[name].attrs["weight_names"][0]
        del file[name][dataset]
        file[name][dataset] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
    with pytest.raises(Exception, match="ExternalLink|external|Not allowed"):
        backbones._load_weights(net, lambda **_: net, str(path))


def test_a_run_with_an_inner_layer_that_is_not_there_ends_before_it_begins():
    settings = ModelSettings(backbone="MobileNet", weights="none")
    backbones.check(settings, [64], ["conv_pw_5", "conv_pw_13_relu"])
    for name in ("conv_pw_55", "photos"):
        with pytest.raises(InputError, match=f"has no layer {name} with a map; did you mean"):
            backbones.check(settings, [64], [name])


def test_photos_that_are_too_small_for_a_net_end_a_run_before_it_begins():
    settings = ModelSettings(backbone="MobileNet", weights="none", image_size=32, crop=1)
    backbones.check(settings, [32, 40])
    with pytest.raises(InputError, match="photos of 24 px are too small for mobilenet"):
        backbones.check(settings, [24, 32])
    with pytest.raises(InputError, match="photos of 24 px are too small"):
        backbones.check(settings.model_copy(update={"crop": 0.75}), [32])
