"""What is gathered of a work folder."""

import pytest
from finished import gathered

from landmarks.report import work_folder


def test_photos_are_counted_by_split(work, recipe, mirror):
    run = gathered(recipe)
    assert {split: (one.listed, one.embedded, len(one.files)) for split, one in run.photos.items()} == {
        "train": (24, 24, 6), "index": (19, 19, 2), "test": (22, 22, 2),
    }  # fmt: skip
    assert run.per_landmark.to_dict() == {10: 8, 20: 8, 30: 8} and run.learnt == 3
    assert run.remarks == [] and run.gallery is not None and run.gallery.calibrated


def test_train_photos_are_counted_without_the_mirror_too(work, recipe, tmp_path):
    away = recipe.model_copy(update={"source": recipe.source.model_copy(update={"mirror": str(tmp_path / "gone")})})
    run = gathered(away)
    assert run.per_landmark.to_dict() == {10: 8, 20: 8, 30: 8} and run.photos["train"].listed is None
    assert run.mirror is None and len(run.remarks) == 3


def test_a_sample_that_is_gone_is_not_rendered(work, recipe):
    away = recipe.model_copy(update={"source": recipe.source.model_copy(update={"mirror": "sample"})})
    assert "the sample is in the work folder no more" in gathered(away).remarks[0]
    assert not (work / "mirror").exists()


def test_what_the_model_beside_has_passed_over_is_told_too(work, recipe):
    (work / "beside").mkdir()
    (work / "beside/skipped.csv").write_text("split,shard,name,reason\ntest,images_000,abcdef,cut\n")
    beside = recipe.model_copy(update={"run": recipe.run.model_copy(update={"beside": "small-frozen"})})
    assert gathered(beside).skipped["name"].tolist() == ["ab<i>c", "abcdef"]


def test_lines_of_the_history_that_are_not_whole_are_left_out(work, recipe):
    whole = gathered(recipe).history
    with open(work / "runs.csv", "a") as file:
        file.write("2026-01-02T10:00:00+01:00,,finished,,\n2026-01-02T10:00:00+01:00,1e999,finished,,\n2026-01\n")
    assert gathered(recipe).history.equals(whole)


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("https://name:word@host/mirror", "https://...@host/mirror"),
        (
            "python recognition.py --mirror http://a:b@c/ --work d@e",
            "python recognition.py --mirror http://...@c/ --work d@e",
        ),
        ("https://host/a@b", "https://host/a@b"),
        (["https://name:word@host/"], ["https://...@host/"]),
        (3, 3),
    ],
)
def test_passwords_stay_at_home(told, shown):
    assert work_folder._without_password(told) == shown
