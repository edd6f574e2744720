import shutil

import numpy as np
import pandas as pd
import pytest
import tiny  # noqa: F401  the backbone
from conftest import recipe_with

from landmarks.mirrors.open import open_mirror
from landmarks.running.command import InputError
from landmarks.training import run as training


def small_training(tiny_mirror, work, **settings):
    recipe = recipe_with(
        mirror=str(tiny_mirror), work=work, backbone="Tiny", weights="none", image_size=32, crop=1, batch_size=8,
        epochs=1, checkpoint_minutes=0, **settings,
    )  # fmt: skip
    mirror = open_mirror(recipe.source.mirror)
    return training.train(recipe.run, recipe.model, recipe.training, mirror, mirror.train(), np.array([10, 20, 30]))


def test_of_a_mirror_with_few_shards_photos_are_held_out(tiny_mirror, tmp_path, capsys, monkeypatch):
    streamed, stream = [], training.stream
    monkeypatch.setattr(training, "stream", lambda *taken: streamed.append(taken[3]) or stream(*taken))
    small_training(tiny_mirror, tmp_path, validation_shards=6)
    assert "6 train shards, too few to hold out 6: 3 photos are held out instead" in capsys.readouterr().out
    history = pd.read_csv(tmp_path / "training.csv")
    assert len(streamed[0]) == 21  # of 24, 8 a landmark, every fifth is held out
    assert history["nearest_photo_gap"].isna().all() if "nearest_photo_gap" in history else True
    assert history["validation_gap"].between(0, 1).all()


def test_a_work_folder_goes_on_with_the_same_photos_alone(tiny_mirror, tmp_path):
    small_training(tiny_mirror, tmp_path / "work")
    shutil.copytree(tiny_mirror, tmp_path / "elsewhere")
    small_training(tmp_path / "elsewhere", tmp_path / "work")
    table = pd.read_csv(tmp_path / "elsewhere/metadata/train.csv")
    table["landmark_id"] = table["landmark_id"].to_numpy()[::-1]
    table.to_csv(tmp_path / "elsewhere/metadata/train.csv", index=False)
    with pytest.raises(InputError, match="was begun on other train photos or landmarks"):
        small_training(tmp_path / "elsewhere", tmp_path / "work")


def test_a_note_of_photos_that_is_damaged_is_one_line(tiny_mirror, tmp_path):
    small_training(tiny_mirror, tmp_path)
    (tmp_path / "train_photos.md5").write_bytes(b"\xff")
    with pytest.raises(InputError, match="if train_photos.md5 is damaged, delete it"):
        small_training(tiny_mirror, tmp_path)
    (tmp_path / "train_photos.md5").unlink()
    small_training(tiny_mirror, tmp_path)


def test_a_spoilt_checkpoint_costs_one_mini_epoch(tiny_mirror, tmp_path, capsys):
    whole = small_training(tiny_mirror, tmp_path / "whole").get_weights()
    small_training(tiny_mirror, tmp_path / "spoilt")
    assert {path.name for path in (tmp_path / "spoilt").glob("*.keras")} == set(training.CHECKPOINTS)
    for fault in ("cut", "gone"):
        path = tmp_path / "spoilt" / training.CHECKPOINTS[0]
        path.write_bytes(path.read_bytes()[:2000]) if fault == "cut" else path.unlink()
        again = small_training(tiny_mirror, tmp_path / "spoilt").get_weights()
        assert "going on after mini-epoch 4 of 5" in capsys.readouterr().out
        for ours, theirs in zip(again, whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for name in training.CHECKPOINTS:
        (tmp_path / "spoilt" / name).write_bytes(b"spoilt")
    with pytest.raises(InputError, match="checkpoint-before.keras cannot be gone on from"):
        small_training(tiny_mirror, tmp_path / "spoilt")
