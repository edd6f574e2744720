"""At the end of a run its page is written and its tracker told, and nothing that goes wrong then may spoil the run."""

from pathlib import Path
from typing import Any

from landmarks.report import tracking
from landmarks.running.command import warn
from landmarks.running.settings import MirrorSettings, RunSettings


def keep(run: RunSettings, source: MirrorSettings, seed: int, settings: dict[str, dict[str, Any]], task: str) -> None:
    """Write `WORK/report.html`, and tell the tracker; a warning says why where that cannot be.

    Args:
        seed, settings: as `work_folder.gather` has them.
        task: what `source.solution` is of, "recognition" or "retrieval".
    """
    try:
        from landmarks.report import page, work_folder  # matplotlib takes seconds, which --help need not wait for

        given = {task: Path(source.solution)} if source.solution else {}
        found = work_folder.gather(run, source, seed, settings, given)
        page.write(found, run.work / page.REPORT)
    except Exception as error:
        warn(f"{run.work}/report.html could not be written: {type(error).__name__}: {error}")
        return
    if run.track != "none":
        try:
            tracking.log(found)
        except Exception as error:  # of MLflow, and of what it asks
            warn(f"the run could not be noted in MLflow: {type(error).__name__}: {str(error)[:300]}")
