"""kill -9 at every operation of `retrieval.py add` and `remove`: the old or the new state, and the same ends the same.

    python benchmarks/growing.py [--every 1]

A tiny work folder grows by three photos, and shrinks again. An operation is a file opened to write, a folder made, a
rename, an fsync or a deletion in the work folder (benchmarks/faults.py). After each kill the table must be that of
before or of after, with features and the photo of each that it lists; the same command then ends with the bytes of an
undisturbed one, and nothing half-made is left. Prints how many kills there were; exit code 1 if anything was bad.
"""

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import scripts
from conftest import make_mirror, photos_in

from benchmarks.faults import DISTURBED
from landmarks.mirrors import added
from landmarks.running.features_file import load_features

SETTINGS = [
    *scripts.PLAIN, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=8", "--epochs=1",
]  # fmt: skip


class Case:
    """A work folder `before`, after `add`, and after `remove` has taken some of those out again."""

    def __init__(self, folder: Path):
        self.folder = folder
        mirror = make_mirror(folder / "mirror")
        photos_in(folder / "more/Church", 2, 1000)
        photos_in(folder / "more/Bridge", 1, 2000)
        work = folder / "before/work"
        scripts.run(ROOT / "recognition.py", f"--work={work}", f"--mirror={mirror}", *SETTINGS).check_returncode()
        self.operations = {}
        for name, earlier in (("add", "before"), ("remove", "add")):
            shutil.copytree(folder / earlier, folder / name)
            self.run(name, folder / name / "work").check_returncode()
            self.operations[name] = len((folder / "notes").read_text().splitlines())

    def run(self, name: str, work: Path, fault: str = "none", place: int = 0):
        rest = self.folder / "more" if name == "add" else "--landmark=Church"
        notes = self.folder / "notes"
        return scripts.run(DISTURBED, ROOT / "retrieval.py", work, fault, place, notes, name, work, rest)

    def killed(self, name: str, place: int) -> str:
        """What is bad after a kill at that operation, and after the same command again; empty: nothing."""
        earlier = {"add": "before", "remove": "add"}[name]
        work = self.folder / "killed/work"
        shutil.rmtree(work.parent, ignore_errors=True)
        shutil.copytree(self.folder / earlier, work.parent)
        done = self.run(name, work, "SIGKILL", place)
        if done.returncode != -signal.SIGKILL:
            return f"it ended with {done.returncode}: {done.stderr[-2000:]}"
        table = added.read(work)
        if not any(table.equals(added.read(self.folder / state / "work")) for state in (earlier, name)):
            return f"neither the old nor the new state:\n{table}"
        if len(table):
            listed = set(table["id"])
            if not listed <= set(load_features(work / "added/added.npz").ids.tolist()):
                return "features are missing"
            if listed != set(added.photos_of(work, listed)):
                return "photos are missing"
        again = self.run(name, work)
        if again.returncode:
            return f"again it ended with {again.returncode}: {again.stderr[-2000:]}"
        if _files(work / "added") != _files(self.folder / name / "work/added"):
            return f"other files than undisturbed: {sorted(_files(work / 'added'))}"
        return ""


def _files(folder: Path) -> dict[str, bytes]:
    """All but what was passed over, which after a kill may be what was there already."""
    there = [path for path in folder.rglob("*") if path.is_file() and path.name != "failed.csv"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in there}


def kills(case: Case, every: int) -> Iterator[tuple[str, int, str]]:
    """Each `every`-th operation of both commands, and what was bad after a kill there."""
    for name, count in case.operations.items():
        for place in range(1, count + 1, every):
            yield name, place, case.killed(name, place)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="kill at each n-th operation alone")
    every = parser.parse_args().every
    with tempfile.TemporaryDirectory() as folder:
        told = list(kills(Case(Path(folder)), every))
    bad = [one for one in told if one[2]]
    for name, place, what in bad:
        print(f"{name} at operation {place}: {what}", file=sys.stderr)
    for name in ("add", "remove"):
        print(f"{name}: {sum(one[0] == name for one in told)} kills, {sum(one[0] == name for one in bad)} bad")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
