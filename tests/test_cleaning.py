import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import cleaning
from landmarks.running import command

# The landmarks of the tiny mirror are green (10), blue (20) and red (30): one channel is near 210, the others near 30.
# Each row is a channel's weights for the six categories, so that its three best are plain: red 0, 1, 2; green 2, 3, 0;
# blue 0, 5, 4. Even where all others help the runner-up with 3 x 30, 210 a step is not made up.
WEIGHTS = np.array([[3, 2, 1, 0, 0, 0], [1, 0, 3, 2, 0, 0], [3, 0, 0, 0, 1, 2]], "float32")


# Outdoor are 0, 1 and 5: of the top 3 that is two votes for red, one for green, two for blue.
CATEGORIES = "/a/airfield 2\n/a/alley 2\n/a/attic 1\n/b/bank_vault 1\n/b/bar 1\n/b/beach 2\n"


def make_classifier(path: Path, weights=WEIGHTS, size=16) -> Path:
    head = keras.layers.Dense(weights.shape[1], use_bias=False)
    model = keras.Sequential([keras.Input((size, size, 3)), keras.layers.GlobalAveragePooling2D(), head])
    head.set_weights([weights])
    model.save(path)
    return path


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "io.txt").write_text(CATEGORIES)
    return {"classifier": make_classifier(folder / "scenes.keras"), "categories": folder / "io.txt"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classifier", "CLASSIFIER"], "--categories"),
        (["--categories", "CATEGORIES"], "--classifier"),
        (["--min-photos", "0"], "at least 1"),
        (["--votes", "0"], "at least 1"),
        (["--image-size", "0"], "at least 1"),
        (["--votes", "6"], "at most --top"),
        (["--top", "7", "--classifier", "CLASSIFIER", "--categories", "CATEGORIES"], "--top 7 is more than the 6"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, tiny_mirror, scenes, monkeypatch, capsys, options, message):
    places = {"CLASSIFIER": str(scenes["classifier"]), "CATEGORIES": str(scenes["categories"])}
    options = [places.get(option, option) for option in options]
    monkeypatch.setattr(sys, "argv", ["cleaning.py", str(tiny_mirror), str(tmp_path / "out.csv"), *options])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        command.run(cleaning.main)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1 and message in error
    assert not any(tmp_path.iterdir())
