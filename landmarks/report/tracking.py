"""What a run has left, for a tracker of experiments: settings, curves, scores, and the page as an artefact."""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landmarks.running.command import InputError
from landmarks.running.files import whole
from landmarks.running.version import version

if TYPE_CHECKING:
    from landmarks.report.work_folder import Run  # by way of pandas, which --help need not wait for

NOTE = "mlflow.json"  # in a work folder: which run of which store it is, and how many mini-epochs that has
STORE = "mlruns"  # a folder beside the scripts' own, where MLFLOW_TRACKING_URI names no other place
ARTEFACTS = ("report.html", "training.csv", "start.json", "*.metrics.json")  # recipe.toml may have a password
MOST_LETTERS = 500  # of a setting, as MLflow has it


def require(tracker: str) -> None:
    """Raise InputError where the package of a tracker is not installed."""
    if tracker == "mlflow":
        _mlflow()


def _mlflow() -> Any:
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder needs no database's driver
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # where there is no git
    try:
        import mlflow
    except ImportError as error:
        raise InputError(f"--track mlflow needs MLflow ({error}): pip install -r requirements-mlflow.txt") from error
    return mlflow


def log(run: "Run") -> None:
    """Add what a work folder holds to its run in MLflow, which is begun if there is none.

    Settings are parameters, as they were at first; each mini-epoch's figures and the scores are metrics.

    Raises what MLflow does, as when its server is away.
    """
    mlflow = _mlflow()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or Path(STORE).resolve().as_uri()
    client = mlflow.MlflowClient(tracking_uri=uri)
    note = _noted(run.work / NOTE, uri) or {"uri": uri, "run": _begun(client, run), "mini_epochs": 0}
    known = client.get_run(note["run"]).data.params
    params = [
        mlflow.entities.Param(name, str(value)[:MOST_LETTERS])
        for section in run.settings.values() for name, value in section.items() if name not in known
    ]  # fmt: skip
    metrics = [mlflow.entities.Metric(*one) for one in (*_curves(run, note["mini_epochs"]), *_scores(run))]
    client.log_batch(note["run"], metrics, params)
    for path in sorted(path for pattern in ARTEFACTS for path in run.work.glob(pattern)):
        client.log_artifact(note["run"], str(path))
    client.set_terminated(note["run"])
    with whole(run.work / NOTE) as part:
        part.write_text(json.dumps({**note, "mini_epochs": len(run.training)}, indent=2) + "\n", encoding="utf-8")
    print(f"run {note['run']} in MLflow: {uri}")


def _noted(path: Path, uri: str) -> dict[str, Any] | None:
    """The run that was begun for this work folder, in this store."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return note if note["uri"] == uri and isinstance(note["mini_epochs"], int) and note["run"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _begun(client: Any, run: "Run") -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "landmarks")
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    tags = {"mlflow.runName": run.work.resolve().name, "landmarks.version": version()}
    return client.create_run(number, tags=tags).info.run_id


def _curves(run: "Run", done: int) -> Iterator[tuple[str, float, int, int]]:
    """Name, value, time and mini-epoch of the figures of each mini-epoch from number `done` on."""
    for step, row in list(enumerate(run.training.to_dict("records"), 1))[done:]:
        for name, value in row.items():
            if name != "mini_epoch" and isinstance(value, int | float) and math.isfinite(value):
                yield _metric(str(name)), float(value), 0, step


def _scores(run: "Run") -> Iterator[tuple[str, float, int, int]]:
    for which, tasks in (("", run.scores), ("beside.", run.beside)):
        for task, halves in tasks.items():
            for half, values in halves.items():
                for name, value in values.items() if isinstance(values, dict) else ():
                    if isinstance(value, int | float) and math.isfinite(value):
                        yield _metric(f"{which}{task}.{half}.{name}"), float(value), 0, 0


def _metric(name: str) -> str:
    """MLflow takes no `map@100`."""
    return re.sub(r"[^\w./ -]", "_", name)
