"""MLflow's store of files has what a run has left. Skipped where it is not installed."""

import json
import sys
from pathlib import Path

import pytest
import scripts
from conftest import ROOT
from finished import START, TRAINING, gathered

from landmarks.report import tracking
from landmarks.running.command import InputError

SMALL = ["--recipe=small-frozen", "--backbone=Tiny", "--weights=none", "--image-size=32", "--batch-size=8"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of files, opened: what is in its only run, and the paths of its artefacts."""
    mlflow = pytest.importorskip("mlflow", reason="pip install -r requirements-mlflow.txt")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())

    def opened(at: Path = tmp_path / "store"):
        client = mlflow.MlflowClient(tracking_uri=at.as_uri())
        experiment = client.get_experiment_by_name("landmarks")
        (run,) = client.search_runs([experiment.experiment_id])
        return client, run

    return opened


def curve(client, run, name):
    return [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]


def test_settings_curves_scores_and_the_page_are_in_the_store(work, recipe, store):
    (work / "report.html").write_text("the page")
    tracking.log(gathered(recipe))
    client, run = store()
    assert run.info.status == "FINISHED" and run.info.run_name == work.name
    assert run.data.params["backbone"] == recipe.model.backbone
    assert run.data.tags["landmarks.version"]
    losses = [(row[0], row[1]) for row in TRAINING[1:]]
    assert curve(client, run, "loss") == losses
    scores = json.loads((work / "recognition.metrics.json").read_text())
    assert run.data.metrics["recognition.private.gap"] == pytest.approx(scores["private"]["gap"])
    assert "retrieval.public.map_100" in run.data.metrics
    artefacts = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "training.csv", "recognition.metrics.json"} <= artefacts
    page = client.download_artifacts(run.info.run_id, "report.html")
    assert Path(page).read_text() == "the page" and START["verdict"] not in artefacts


def test_a_second_script_adds_to_the_run(work, recipe, store):
    tracking.log(gathered(recipe))
    with open(work / "training.csv", "a") as file:
        file.write("4,1.0,0.75\n")
    more = recipe.model_copy(update={"retrieval": recipe.retrieval.model_copy(update={"rerank_by": "none"})})
    tracking.log(gathered(more))  # a setting that may change, which a parameter may not
    client, run = store()
    assert curve(client, run, "loss") == [(1, 3.0), (2, 2.0), (3, 1.5), (4, 1.0)]


def test_a_note_of_another_store_or_none_begins_a_run(work, recipe, store):
    for note in ("no JSON", "{}", json.dumps({"uri": "file:///elsewhere", "run": "1", "mini_epochs": 9})):
        (work / tracking.NOTE).write_text(note)
        assert tracking._noted(work / tracking.NOTE, "file:///here") is None
    tracking.log(gathered(recipe))
    client, run = store()
    assert len(curve(client, run, "loss")) == 3


def test_passwords_stay_at_home(work, recipe, store):
    source = recipe.source.model_copy(update={"mirror": "https://me:secret@example.com/mirror"})
    tracking.log(gathered(recipe.model_copy(update={"source": source})))
    _, run = store()
    assert run.data.params["mirror"] == "https://...@example.com/mirror"


def test_both_scripts_note_their_run(tiny_mirror, tmp_path, store):
    for script, given in (
        ("recognition.py", [f"--mirror={tiny_mirror}", "--dimensions=4", *SMALL]),
        ("retrieval.py", []),
    ):
        done = scripts.run(ROOT / script, f"--work={tmp_path / 'work'}", "--track=mlflow", *given)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "in MLflow: file://" in done.stdout
    client, run = store()
    assert {"recognition.private.gap", "retrieval.private.map_100"} <= set(run.data.metrics)
    assert "report.html" in {one.path for one in client.list_artifacts(run.info.run_id)}
    assert run.data.params["track"] == "mlflow" and run.data.params["dimensions"] == "4"


def test_a_store_that_is_away_spoils_nothing(tiny_mirror, tmp_path, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://example")
    work = tmp_path / "work"
    done = scripts.run(
        ROOT / "recognition.py", f"--work={work}", "--track=mlflow", f"--mirror={tiny_mirror}", "--dimensions=4", *SMALL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "warning: the run could not be noted in MLflow" in done.stderr and (work / "recognition.csv").exists()


def test_without_the_package_it_says_so_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    tracking.require("none")
    with pytest.raises(InputError, match="--track mlflow needs MLflow .*pip install -r requirements-mlflow.txt"):
        tracking.require("mlflow")
