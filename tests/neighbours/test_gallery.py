"""What a run leaves for single photos; that these are recognised by it is in tests/test_identify.py."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import write_features

from landmarks.neighbours import gallery
from landmarks.running.answer_settings import RecognitionSettings, VerificationSettings
from landmarks.running.command import InputError
from landmarks.running.settings import EmbeddingSettings, RunSettings


def mirror_with(path):
    return SimpleNamespace(path=lambda _: path)


def test_names_are_those_of_the_last_mirror(tmp_path):
    there, work = tmp_path / "train_label_to_category.csv", tmp_path / "work"
    there.write_text(
        "landmark_id,category\n5,http://commons.wikimedia.org/wiki/Category:Pont_d%27I%C3%A9na\n6,eu/tower\x1b[2J\n"
    )
    gallery.keep_names(mirror_with(there), work)
    assert gallery.names(work) == {5: "Pont d'Iéna", 6: "eu/tower?[2J"}
    gallery.keep_names(mirror_with(None), work)
    assert gallery.names(work) == {}


@pytest.mark.parametrize(("voting", "opens"), [(["train1"], True), ([], False)])
def test_somebody_has_to_vote(tmp_path, monkeypatch, voting, opens):
    monkeypatch.setattr(gallery.ensemble, "members", lambda *_: [])
    run, settings = RunSettings(work=tmp_path), (RecognitionSettings(), VerificationSettings())
    files = write_features(tmp_path / "features/train", "train", np.eye(2))
    voters = pd.DataFrame({"id": voting, "landmark_id": np.full(len(voting), 7)})
    gallery.keep(run, EmbeddingSettings(), *settings, files, voters, [], False)
    if opens:
        assert gallery.opened(run, [], *settings).landmark.tolist() == [-1, 7]
    else:
        with pytest.raises(InputError, match="gallery.npz .*no train photo votes.*: run recognition.py"):
            gallery.opened(run, [], *settings)
