"""What is exported does what identify.py does to a photo: scales, mirrored view, whitening, the model beside."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import scripts
import tiny  # noqa: F401
from conftest import ROOT, jpeg, recipe_with
from PIL import Image

import model as models
from landmarks.neighbours import descriptor, ensemble
from landmarks.networks import export
from landmarks.networks import whitening as whitenings
from landmarks.networks.whitening import Whitening
from landmarks.running import recipe as recipes
from landmarks.running.command import InputError

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "litert": "tensorflow"}


def trained(folder, seed, dimensions=0, **settings):
    """A work folder with a net of random weights, and a whitening where `dimensions` are given."""
    how = {"whitening": "pca" if dimensions else "none", "dimensions": dimensions, **settings}
    recipe = recipe_with(
        work=folder, backbone="Tiny", weights="none", image_size=32, crop=1.0, batch_size=8, **{"beside": "", **how}
    )
    recipe.keep()
    net = models.build_model(3, recipe.model, seed)
    models.save(net, folder / "model.keras")
    pd.DataFrame({"class": range(3), "landmark_id": [10, 20, 30]}).to_csv(folder / "labels.csv", index=False)
    if dimensions:
        size = (8 + 8 * len(recipe.embedding.inner_layers)) * (
            len(recipe.embedding.scales) if recipe.embedding.scale_pooling == "side_by_side" else 1
        )
        rng = np.random.default_rng(seed)
        found = Whitening(*(rng.standard_normal(s).astype(np.float32) for s in (size, (size, dimensions))))
        note = ensemble._whitening_note(folder, models.load_labels(folder / "labels.csv"), recipe.embedding, 32)
        whitenings.save(folder / ensemble.WHITENING, found, f"{note} photos")
    return recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A net at three sizes, mirrored and whitened, and another one beside it, which counts more."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    trained(
        folder, 1, 12, loss="arcface", scales=[0.75, 1.0, 1.5], scale_pooling="side_by_side", mirrored=True,
        inner_layers=["conv"], beside="small-frozen", model_weights=[1.0, 2.0],
    )  # fmt: skip
    trained(folder / "beside", 2, mirrored=False, loss="none", pooling="gem")
    return folder


def png(seed, size):
    """A photo without a loss, and one that is not scaled as it is decoded."""
    encoded = io.BytesIO()
    Image.open(io.BytesIO(jpeg(seed, size))).save(encoded, "PNG")
    return encoded.getvalue()


def test_all_models_of_a_run_are_one(work):
    recipe = recipes.load([f"--work={work}"])
    embedder = ensemble.Embedder(recipe.run, recipe.embedding)
    run = export.in_keras(ensemble.as_one(recipe.run, recipe.embedding))
    for seed, size in enumerate([(61, 47), (20, 90), (32, 32)]):
        data = png(seed, size)
        found = run(descriptor.decoded("", data))
        assert found.shape == (12 + 8,) and found.dtype == np.float32
        np.testing.assert_allclose(found, embedder(data).embeddings[0], atol=3e-3)  # which is rounded to float16 twice
        assert np.linalg.norm(found) == pytest.approx(1)


@pytest.fixture
def command(work, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(jpeg(0, (80, 60)))
    (tmp_path / "other.jpg").write_bytes(jpeg(1, (50, 70)))
    photos = ["--photos", tmp_path / "photo.jpg", tmp_path / "other.jpg"]
    return lambda *more: scripts.run(ROOT / "model.py", "export", work, "--out", tmp_path / "out", *more, *photos)


def test_a_savedmodel_is_as_the_challenge_of_2020_had_it(command, tmp_path):
    tf = pytest.importorskip("tensorflow")
    done = command()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 photos" in done.stdout and "savedmodel " in done.stdout
    folder = tmp_path / "out/savedmodel"
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    (given,) = signature.structured_input_signature[1].values()
    assert (given.name, given.shape.as_list(), given.dtype) == ("input_image", [None, None, 3], tf.uint8)
    assert signature.structured_outputs["global_descriptor"].shape.as_list() == [20]
    note = json.loads((folder / "export.json").read_text())
    assert note["largest_difference"] <= 1e-4 and note["photos"] == 2 and note["output"]["shape"] == [20]
    assert command().returncode == 0  # it may be replaced
    (folder / "export.json").unlink()
    done = command()
    assert done.returncode == 2 and "was not made by this command" in done.stderr
    assert (folder / "saved_model.pb").is_file()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["savedmodel"]


@pytest.mark.parametrize("name", PACKAGES)
def test_other_runtimes_say_the_same(work, tmp_path, name):
    pytest.importorskip(PACKAGES[name])
    export.require(name)
    recipe = recipes.load([f"--work={work}"])
    model = ensemble.as_one(recipe.run, recipe.embedding)
    photos = [np.asarray(Image.open(io.BytesIO(jpeg(seed, size)))) for seed, size in enumerate([(80, 60), (33, 50)])]
    expected = [export.in_keras(model)(photo) for photo in photos]
    descriptor.write(model, name, tmp_path / name, photos, expected, {})
    assert json.loads((tmp_path / name / "export.json").read_text())["largest_difference"] <= 1e-4


def test_what_differs_from_keras_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "write", lambda model, name, folder: (folder / "model.onnx").write_bytes(b"new"))
    monkeypatch.setattr(export, "opened", lambda name, folder: lambda photo: np.full(4, 0.5002, np.float32))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/export.json").write_text("before")
    with pytest.raises(InputError, match="onnx differs from Keras by 2.0e-04, more than 0.0001"):
        descriptor.write(None, "onnx", tmp_path / "onnx", [np.zeros(1)], [np.full(4, 0.5, np.float32)], {})
    assert [path.name for path in tmp_path.rglob("*")] == ["onnx", "export.json"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nowhere"], "there is no trained model"),
        (["{}"], "the mirror sample is not at hand: give photos to compare on by --photos"),
        (["{}", "--photos", "nowhere.jpg"], "photo nowhere.jpg cannot be read: No such file"),
        (["{}", "--photos", "model.py"], "photo model.py cannot be read: not a photo"),
        (["{}", "--format", "tensorrt"], "invalid choice: 'tensorrt'"),
    ],
)
def test_wrong_input_is_one_line(work, arguments, error):
    done = scripts.run(ROOT / "model.py", "export", *(one.format(work) for one in arguments))
    assert done.returncode == 2 and error in done.stderr
    assert not (work / "export").exists()
