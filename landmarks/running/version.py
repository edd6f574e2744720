"""Which state of this project runs: by its tags and commits where it is a clone, by a note where it was packed."""

import subprocess
from functools import cache
from pathlib import Path

from landmarks.running.settings import ROOT

NOTE = "VERSION"  # at the root of what was packed: package_for_kaggle.py and the container files write it


@cache
def version(root: Path = ROOT) -> str:
    """As `git describe` tells it, like v1.2-3-g2a458d6, or 2a458d6 before the first tag.

    It ends in -dirty where files were changed after the commit. Unknown is a copy without either.
    """
    if (root / NOTE).is_file():
        return (root / NOTE).read_text(encoding="utf-8")[:100].strip()
    if not (root / ".git").exists():  # lest a repository around it is told of
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--tags", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):  # there is no git
        return "unknown"
    return done.stdout.strip() or "unknown"
