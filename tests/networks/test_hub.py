"""Presets of KerasHub and .keras files as backbones. Presets are of the real classes, small and random, in folders."""

import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest
import scripts
from conftest import ROOT
from keras import ops

import model as models
from landmarks.networks import hub, presets
from landmarks.networks.backbones import blocks, build_backbone, check
from landmarks.networks.layers import Normalization
from landmarks.networks.presets import PresetBackbone
from landmarks.running.command import InputError
from landmarks.running.recipe import load
from landmarks.running.settings import ModelSettings

keras_hub = pytest.importorskip("keras_hub", reason="pip install -r requirements-hub.txt", exc_type=ImportError)
BACKBONE = 3  # in a model, after the input, the augmentation and the normalisation
WIDTH = {"num_layers": 3, "num_heads": 2, "hidden_dim": 16}
CONVERSION = {"scale": [0.01, 0.02, 0.03], "offset": [-1.0, -2.0, -3.0]}
SMALL = {  # the class, its arguments without the size of the photos, its extra tokens
    "ViT": ("ViTBackbone", {**WIDTH, "mlp_dim": 32, "patch_size": 16}, 1),
    "DeiT": ("DeiTBackbone", {**WIDTH, "intermediate_dim": 32, "patch_size": 16}, 2),
    "DINOV2": ("DINOV2Backbone", {**WIDTH, "intermediate_dim": 32, "patch_size": 16, "num_register_tokens": 4}, 5),
    "DINOV3": ("DINOV3Backbone", {**WIDTH, "intermediate_dim": 32, "patch_size": 16}, 5),
    "SigLIP": ("SigLIPVisionEncoder", {**WIDTH, "intermediate_dim": 32, "patch_size": 16}, 0),
}
POSITIONED = [name for name in SMALL if name != "DINOV3"]


def build(name, size=64):
    """A random backbone of the class, whose tokens are large enough to tell."""
    keras.utils.set_random_seed(0)
    kind, arguments, _ = SMALL[name]
    if not hasattr(keras_hub.models, kind):  # the last one for Python 3.10 lacks what came later
        pytest.skip(f"this KerasHub has no {kind}")
    if name == "DINOV2":
        arguments = arguments | {"position_embedding_shape": (size, size)}
    backbone = getattr(keras_hub.models, kind)(image_shape=(size, size, 3), **arguments)
    for weight in backbone.weights:
        if weight.dtype == "float32":
            weight.assign(np.random.default_rng(len(weight.shape)).normal(0, 0.3, weight.shape))
    return backbone


def resnet():
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64, 12],
        stackwise_num_blocks=[1, 1], stackwise_num_strides=[1, 2], block_type="basic_block",
    )  # fmt: skip


def siglip():
    text = keras_hub.models.SigLIPTextEncoder(
        vocabulary_size=9, embedding_dim=16, hidden_dim=16, num_layers=1, num_heads=2, intermediate_dim=16
    )
    return keras_hub.models.SigLIPBackbone(build("SigLIP"), text)


def tokens_of(name, backbone, photos):
    """What KerasHub makes of the photos, without our layer; of SigLIP what it pools."""
    if name != "SigLIP":
        inputs = backbone.input
        return ops.convert_to_numpy(backbone(dict.fromkeys(inputs, photos) if isinstance(inputs, dict) else photos))
    tokens = keras.Model(backbone.input, backbone.post_layer_norm.output)
    return ops.convert_to_numpy(tokens({"images": photos}))


def photos(size, count=2):
    return np.random.default_rng(1).normal(size=(count, size, size, 3)).astype("float32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A preset's folder for each class, made when it is asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("presets") / name
            backbone = {"ResNet": resnet, "SigLIP": siglip}[name]() if name in ("ResNet", "SigLIP") else build(name)
            backbone.save_to_preset(str(made[name]))
            getattr(keras_hub.layers, f"{name}ImageConverter")(image_size=(64, 64), **CONVERSION).save_to_preset(
                str(made[name])
            )
        return made[name]

    return folder


def settings(folder, **changed):
    return ModelSettings(**{"backbone": f"hub:{folder}", "image_size": 64, "crop": 1.0} | changed)


@pytest.mark.parametrize("name", SMALL)
def test_patch_tokens_are_a_map_and_the_class_token_is_one_place(name):
    backbone, extra = build(name), SMALL[name][2]
    expected = tokens_of(name, backbone, photos(64))
    found = ops.convert_to_numpy(PresetBackbone(backbone)(photos(64)))
    np.testing.assert_allclose(found, expected[:, extra:].reshape(2, 4, 4, 16), atol=1e-4)
    if extra:
        token = ops.convert_to_numpy(PresetBackbone(backbone, token=True)(photos(64)))
        np.testing.assert_allclose(token, expected[:, :1, None].reshape(2, 1, 1, 16), atol=1e-4)


def test_rotary_positions_fit_any_size():
    small, large = build("DINOV3"), build("DINOV3", 96)
    expected = tokens_of("DINOV3", large, photos(96))[:, 5:].reshape(2, 6, 6, 16)
    np.testing.assert_allclose(ops.convert_to_numpy(PresetBackbone(small)(photos(96))), expected, atol=1e-4)


@pytest.mark.parametrize("name", POSITIONED)
def test_learnt_positions_are_interpolated(name):
    """Where all places have one embedding, the interpolated places have it too: KerasHub's own larger model tells."""
    small, large, extra = build(name), build(name, 96), SMALL[name][2]
    for backbone in (small, large):
        for weight in backbone.weights:
            if "position_embedding" in weight.path:
                table = np.zeros(weight.shape, "float32")
                registers = 4 if name == "DINOV2" else 0  # which have no positions
                table.reshape(-1, 16)[extra - registers :] = np.linspace(-1, 1, 16)
                weight.assign(table)
    expected = tokens_of(name, large, photos(96))[:, extra:].reshape(2, 6, 6, 16)
    found = ops.convert_to_numpy(PresetBackbone(small)(photos(96)))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    cut = ops.convert_to_numpy(PresetBackbone(small)(np.pad(photos(96), [(0, 0), (0, 15), (0, 15), (0, 0)])))
    np.testing.assert_allclose(cut, expected, atol=1e-4)


def test_interpolation_is_bicubic():
    for old, new in ((4, 4), (4, 7), (9, 4)):
        assert np.allclose(ops.convert_to_numpy(presets.bicubic(old, new, antialias=True)).sum(axis=1), 1)
    np.testing.assert_allclose(ops.convert_to_numpy(presets.bicubic(5, 5, antialias=False)), np.eye(5), atol=1e-6)
    torch = pytest.importorskip("torch")
    row = np.random.default_rng(0).normal(size=(1, 1, 9, 9)).astype("float32")
    for new in (6, 9, 14):
        matrix = ops.convert_to_numpy(presets.bicubic(9, new, antialias=False))
        expected = torch.nn.functional.interpolate(torch.tensor(row), (new, new), mode="bicubic").numpy()
        np.testing.assert_allclose(matrix @ row[0, 0] @ matrix.T, expected[0, 0], atol=1e-5)


def test_a_preset_brings_its_normalisation_and_any_crop_is_seen(folders):
    base, preprocess_input = build_backbone(settings(folders("ViT"), image_size=112, crop=0.6))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype("float32")
    expected = pixels * np.array(CONVERSION["scale"], "float32") + np.array(CONVERSION["offset"], "float32")
    np.testing.assert_allclose(ops.convert_to_numpy(Normalization.like(preprocess_input)(pixels)), expected, atol=1e-5)
    assert base(photos(112)).shape == (2, 7, 7, 16)
    assert base(photos(67)).shape == (2, 4, 4, 16)


def test_positions_are_taken_at_their_own_size(tmp_path):
    """A preset of DINOv2 may be saved for photos of another size than its positions are of."""
    backbone = build("DINOV2", 64)
    config = backbone.get_config() | {"image_shape": (32, 32, 3)}
    other = type(backbone).from_config(config)
    other.save_to_preset(str(tmp_path))
    keras_hub.layers.DINOV2ImageConverter(scale=1.0, offset=0.0).save_to_preset(str(tmp_path))
    base, _ = build_backbone(settings(tmp_path))
    assert base.layers[1].grid == (4, 4)


@pytest.mark.parametrize("name", ["DINOV2", "ResNet"])
def test_what_is_frozen_and_trained_stays_so_in_a_file(name, folders, tmp_path):
    model = models.build_model(3, settings(folders(name), freeze=2, pooling="gem"))
    names = [block.name for block in blocks(model.layers[BACKBONE])]
    if name == "DINOV2":
        assert len(names) == 1 + 3 + 1  # patches, blocks, normalisation
        positions = model.layers[BACKBONE].layers[1].embedding.interpolated_position_embeddings
        positions.assign(ops.convert_to_numpy(positions) - 0.5)
    else:
        assert not any(
            layer.trainable for layer in model.layers[BACKBONE]._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization)
        )  # fmt: skip
    models.save(model, tmp_path / "model.keras")
    loaded = models.load(tmp_path / "model.keras")
    paths, again = ([weight.path for weight in one.trainable_weights] for one in (model, loaded))
    assert (
        paths
        and len(paths) < len(model.weights)
        and [path.split("/")[-2:] for path in paths] == [path.split("/")[-2:] for path in again]
    )
    assert not any("mask_token" in path for path in paths)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected, found = (ops.convert_to_numpy(one(images)) for one in (model, loaded))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_is_loaded_on_every_back_end(folders, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8)
    np.save(tmp_path / "photos.npy", images)
    expected = {}
    for name in ("DINOV2", "DINOV3", "SigLIP"):
        model = models.build_model(3, settings(folders(name), image_size=80, pooling="gem"))
        models.save(model, tmp_path / f"{name}.keras")
        expected[name] = ops.convert_to_numpy(model(images))
    program = (
        "import sys, numpy as np; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import model\n"
        "from keras import ops\n"
        "for path in Path(sys.argv[2]).glob('*.keras'):\n"
        "    found = model.load(path)(np.load(Path(sys.argv[2]) / 'photos.npy'))\n"
        "    np.save(path.with_suffix('.npy'), ops.convert_to_numpy(found))"
    )
    for backend in ("jax", "torch"):
        if find_spec(backend) is None:
            continue
        done = scripts.run("-c", program, ROOT, tmp_path, environment=scripts.on(backend))
        assert done.returncode == 0, done.stderr[-3000:]
        for name, values in expected.items():
            np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), values, atol=1e-3)


def test_rates_fall_from_block_to_block(folders):
    model = models.build_model(3, settings(folders("DINOV3"), pooling="token", loss="arcface"))
    rates = models.learning_rates(model, 0.5)
    found = {}
    for rate, variable in zip(rates, model.trainable_variables, strict=True):
        found.setdefault(rate, set()).add(variable.path)
    assert sorted(found) == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    assert any("patch_embeddings" in path for path in found[0.5**4])
    assert all("layernorm" in path or "landmark" in path for path in found[1.0])


def test_it_learns_and_recognises_end_to_end(folders, tiny_mirror, tmp_path):
    work = tmp_path / "work"
    given = [
        *scripts.PLAIN, "--scales=1,1.5",
        f"--backbone=hub:{folders('DINOV2')}", "--pooling=token", "--image-size=64", "--crop=0.7", "--batch-size=8",
        "--epochs=1", "--freeze=2", "--layer-decay=0.7", "--loss=arcface", f"--mirror={tiny_mirror}",
    ]  # fmt: skip
    done = scripts.run(ROOT / "recognition.py", f"--work={work}", *given)
    assert done.returncode == 0, done.stderr[-3000:]
    done = scripts.run(ROOT / "retrieval.py", f"--work={work}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (work / "retrieval.csv").exists()


def test_anyones_file_gives_a_map_or_a_vector(tmp_path):
    inputs = keras.Input((None, None, 3))
    maps = keras.layers.Conv2D(6, 4, strides=4)(inputs)
    vectors = keras.layers.GlobalAveragePooling2D()(maps)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    for name, output, shape in (("map", maps, (2, 8, 8, 6)), ("vector", vectors, (2, 1, 1, 6))):
        model = keras.Model(inputs, output)
        model.save(tmp_path / f"{name}.keras")
        base, preprocess_input = build_backbone(ModelSettings(backbone=str(tmp_path / f"{name}.keras")))
        found = ops.convert_to_numpy(base(preprocess_input(images)))
        np.testing.assert_allclose(found, ops.convert_to_numpy(model(images)).reshape(shape), atol=1e-4)


def test_what_cannot_be_a_backbone_is_one_clear_line(folders, tmp_path, monkeypatch):
    def refused(match, name=None, **changed):
        with pytest.raises(InputError, match=match) as told:
            check(settings(folders("SigLIP"), **({"backbone": name} if name else {}), **changed))
        assert "\n" not in str(told.value)

    refused("has no class token: --pooling", pooling="token")
    refused("--image-size 60 does not fit patches of 16 px: 48 or 64", image_size=60)
    refused("'dinov2_smal' is neither a folder.*did you mean dinov2_small", "hub:dinov2_smal")
    (tmp_path / "empty").mkdir()
    refused("empty is no folder of a KerasHub preset", f"hub:{tmp_path / 'empty'}")
    bert = keras_hub.models.BertBackbone(
        vocabulary_size=9, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4, max_sequence_length=4
    )
    bert.save_to_preset(str(tmp_path / "bert"))
    refused("BertBackbone, which takes no photos", f"hub:{tmp_path / 'bert'}")
    resnet().save_to_preset(str(tmp_path / "bare"))
    refused("image_converter.json", f"hub:{tmp_path / 'bare'}")

    def away(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", away)
    refused(r"no route to host\); without network bring its folder.*attach kaggle://.*dinov2_small", "hub:dinov2_small")
    refused(r"preset hf://me/mine cannot be had.*weights\.h5\) and give it as hub:FOLDER", "hf:me/mine")
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    refused("pip install -r requirements-hub.txt")


def test_what_is_no_backbone_in_a_file_is_told(tmp_path):
    (tmp_path / "broken.keras").write_bytes(b"no zip")
    inputs = keras.Input((8,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "rows.keras")
    fixed = keras.Input((32, 32, 3))
    keras.Model(fixed, keras.layers.Conv2D(2, 1)(fixed)).save(tmp_path / "fixed.keras")
    for name, match in (
        ("broken", "is not a .keras file of a model"), ("gone", "is not a .keras file"),
        ("rows", "does not map photos"), ("fixed", "32 x 32 px alone: --image-size 32 --crop 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            check(ModelSettings(backbone=str(tmp_path / f"{name}.keras"), weights="none"))
    with pytest.raises(InputError, match="MobileNet has no class token"):
        build_backbone(ModelSettings(backbone="MobileNet", weights="none", pooling="token"))
    assert not hub.is_foreign("MobileNet")


def test_a_model_that_needs_keras_hub_says_so(folders, tmp_path, monkeypatch):
    models.save(models.build_model(3, settings(folders("ViT"))), tmp_path / "model.keras")
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(InputError, match="pip install -r requirements-hub.txt"):
        models.load(tmp_path / "model.keras")


@pytest.mark.parametrize(("recipe", "patch"), [("dinov2-small", 14), ("dinov3", 16), ("dinov3-arcface", 16)])
def test_the_recipes_see_whole_patches(recipe, patch):
    found = load([f"--recipe={recipe}"])
    preset = found.model.backbone.removeprefix("hub:")
    if preset not in keras_hub.models.Backbone.presets:  # as above
        pytest.skip(f"this KerasHub has no {preset}")
    sizes = [*found.embedding.sizes(found.model.image_size), found.model.crop_size * (found.model.loss != "none")]
    assert not any(size % patch for size in sizes)
