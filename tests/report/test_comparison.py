"""Runs side by side: scores, differences, settings."""

import shutil

import pytest
from finished import gathered

from landmarks.report import comparison
from landmarks.scoring import resampling


def test_scores_stand_with_their_errors_and_differences(work, recipe, mirror, tmp_path):
    other = shutil.copytree(work, tmp_path / "other")
    (other / "recognition.csv").write_text((work / "recognition.csv").read_text().replace(",10 ", ",20 "))
    runs = [
        gathered(recipe),
        gathered(recipe.model_copy(update={"run": recipe.run.model_copy(update={"work": other})})),
    ]
    mean, private, public = comparison.scores(runs)
    rows = {row.measure: row for row in mean.rows}
    solution = mirror / "ground_truth/recognition_solution_v2.1.csv"
    one, two = (
        resampling.resample("recognition", run.work / "recognition.csv", solution)["mean"]["gap"] for run in runs
    )
    assert rows["GAP"].cells == [f"{each.value:.3f} ± {each.standard_error:.3f}" for each in (one, two)]
    assert rows["GAP"].best == [0]
    less = resampling.difference(two, one)
    assert rows["GAP, less that of A"].cells == ["–", f"{less.value:+.3f} ± {less.standard_error:.3f}"]
    assert rows["mAP@100, less that of A"].cells[1] == "+0.000 ± 0.000" and rows["mAP@100"].best == []
    assert (
        private.title == "The private half"
        and private.rows[0].cells[0] == f"{runs[0].scores['recognition']['private']['gap']:.3f}"
    )


def test_of_positions_the_smaller_is_the_better():
    assert comparison._best([3.0, None, 1.5], False) == [2] and comparison._best([3.0, None, 1.5], True) == [0]
    assert comparison._best([None, 1.0], True) == comparison._best([1.0, 1.0], True) == []


def test_runs_that_were_judged_by_others_have_no_difference(work, recipe, tmp_path):
    run = gathered(recipe)
    solution = tmp_path / "other.csv"
    solution.write_text(run.solutions["recognition"].read_text() + "\n")
    other = run._replace(solutions={**run.solutions, "recognition": solution})
    measures = [row.measure for row in comparison.scores([run, other])[0].rows]
    assert "GAP, less that of A" not in measures and "mAP@100, less that of A" in measures


def test_settings_that_differ_are_listed(work, recipe):
    run = gathered(recipe)
    changed = {**run.settings, "recognition": {**run.settings["recognition"], "votes": 5}}
    assert comparison.differing([run, run._replace(settings=changed), run]) == {"votes": [1, 5, 1]}
    assert comparison.differing([run]) == {} and comparison.times([run]) == [3725]


def test_what_is_not_scored_has_a_dash(work, recipe):
    run = gathered(recipe)
    bare = run._replace(solutions=dict.fromkeys(run.solutions), scores=dict.fromkeys(run.scores, {}))
    assert comparison.scores([bare]) == []
    assert comparison.scores([run, bare])[0].rows[0].cells[1] == "–"


@pytest.mark.parametrize("name", ["recognition.csv", "retrieval.csv"])
def test_a_damaged_submission_is_passed_over(work, recipe, name):
    run = gathered(recipe)
    (work / name).write_text("nonsense\n")
    assert [row.measure for row in comparison.scores([run, run])[0].rows]
