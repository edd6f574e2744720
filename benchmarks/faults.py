"""Faults injected into both scripts on a tiny mirror: each run ends with the bytes of an undisturbed one, or one line.

    python benchmarks/faults.py [kill|disk|every|server|all] [--times 100] [--seed 0] [--recipes softmax triplet]

kill: SIGKILL at random times and at random file operations. disk: ENOSPC from a random operation on, EIO at it
alone; files that may not grow beyond a size, which fails what C writes too; as root, a tmpfs that is full. every:
ENOSPC and EIO at every operation, and every file that is opened to be written cut at half of its size, in a chain of
runs, each of which goes on where a fault ended the one before. server: each fault of `lying_server.py` at random
requests, with time-outs of a second, not 30. Faults are injected by `disturbed.py`.

The recipes do what the five small ones do, verified by SIFT, with a backbone and photos that train in a second. After
what ended a run the same command goes on without the fault: then the bytes are the same, with nothing half-made left.
Prints a row for each kind; what is bad is told on stderr. Exit code 1 if anything is.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import scripts
from conftest import make_mirror

from benchmarks.lying_server import FAULTS, LiarServer, serving
from landmarks.mirrors import build

DISTURBED = ROOT / "benchmarks/disturbed.py"
KINDS = ("kill", "disk", "every", "server")
SCRIPTS = ("recognition.py", "retrieval.py")
MADE = ("recognition.csv", "verification.csv", "retrieval.csv")
SETTINGS = [
    *scripts.PLAIN, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=8", "--epochs=1",
    "--verify=lower", "--extractor=sift", "--query-expansion=1",
]  # fmt: skip
RECIPES = {
    "softmax": ["--recognizer=neighbours"],
    "triplet": ["--loss=triplet", "--classes-per-batch=2", "--photos-per-class=2", "--subspaces=2"],
    "arcface": ["--loss=arcface", "--recognizer=centres", "--validation-shards=0"],
    "frozen": ["--loss=none", "--recognizer=neighbours", "--whitening=lda", "--scales=1,0.5"],
    "bottleneck": ["--bottleneck-epochs=1", "--embedding-size=8", "--embedding-layer=relu", "--recognizer=head"],
}

Trial = tuple[str, Callable[[], str]]  # what is done, and what tells how it ended
Ended = tuple[str, str, str]  # what was done; how it ended: "same", "line", "killed" or "bad"; and what was bad
Operation = tuple[int, str]  # the number of its script, and its name


class Bad(Exception):
    """Neither the same bytes nor one clear line."""


@dataclass
class Case:
    """One recipe's undisturbed run on a mirror, which the others are measured by."""

    name: str
    mirror: str
    folder: Path
    settings: list[str] = field(default_factory=list)
    names: list[list[str]] = field(default_factory=list)  # of each script's operations, in order
    seconds: list[float] = field(default_factory=list)

    def undisturbed(self) -> "Case":
        self.folder.mkdir(exist_ok=True)
        work = self.folder / "whole"
        for number, script in enumerate(SCRIPTS):
            if number:
                shutil.copytree(work, self.folder / f"before-{number}")
            began = time.monotonic()
            done = self.run(script, work)
            if done.returncode:
                raise Bad(f"{script} of {self.name} without any fault: {done.stderr[-2000:]}")
            self.seconds.append(time.monotonic() - began)
            self.names.append((self.folder / "notes").read_text().splitlines())
        return self

    @property
    def operations(self) -> list[int]:
        """How many there are in each script."""
        return [len(names) for names in self.names]

    def run(
        self, script: str, work: Path, fault: str = "none", place: int = 0, notes: str = "notes", **options
    ) -> subprocess.CompletedProcess:
        arguments = [f"--work={work}", f"--mirror={self.mirror}", *SETTINGS, *RECIPES[self.name], *self.settings]
        return scripts.run(DISTURBED, ROOT / script, work, fault, place, self.folder / notes, *arguments, **options)

    def disturbed(self, number: int, fault: str, place: int = 0, **options) -> str:
        """How that script ends with the fault: "same", "line" or "killed"; raises Bad, also for what comes after."""
        work = self.folder / "disturbed"
        shutil.rmtree(work, ignore_errors=True)
        if number:
            shutil.copytree(self.folder / f"before-{number}", work)
        done = self.run(SCRIPTS[number], work, fault, place, **options)
        outcome = self.outcome(done)
        self.go_on(work, SCRIPTS[number + (outcome == "same") :], done.stderr[-1000:])
        self.compare(work, f"{outcome}, {done.stderr[-1000:]}")
        return outcome

    def go_on(self, work: Path, rest: Sequence[str], before: str) -> None:
        """Run these scripts without a fault."""
        for script in rest:
            again = self.run(script, work)
            if again.returncode:
                raise Bad(f"{before}; then {script} ends with {again.returncode}: {again.stderr[-2000:]}")

    def outcome(self, done: subprocess.CompletedProcess) -> str:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        if done.returncode == -signal.SIGKILL:
            return "killed"
        if done.returncode == 0 and "Traceback" not in done.stderr:
            return "same"
        if done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr:
            return "line"
        raise Bad(f"exit code {done.returncode}: {done.stderr[-3000:]}")

    def compare(self, work: Path, before: str) -> None:
        for name in MADE:
            if (work / name).read_bytes() != (self.folder / "whole" / name).read_bytes():
                raise Bad(f"{name} differs after: {before}")
        if left := list(work.rglob("part-*")):
            raise Bad(f"{left} are left after: {before}")


def kills(case: Case, times: int, draw: random.Random) -> Iterator[Trial]:
    """SIGKILL at random operations and at random times, half of each."""
    for trial in range(times):
        if trial % 2:
            place = draw.randint(1, sum(case.operations))
            number = int(place > case.operations[0])
            place -= number * case.operations[0]
            yield f"SIGKILL by operation at {place}", partial(case.disturbed, number, "SIGKILL", place)
        else:
            when = draw.uniform(0, sum(case.seconds))
            number = int(when > case.seconds[0])
            when -= number * case.seconds[0]

            def kill(process: int, when: float = when) -> None:
                time.sleep(when)
                with suppress(ProcessLookupError):  # it was faster this time
                    os.kill(process, signal.SIGKILL)

            yield f"SIGKILL at {when:.2f} s", partial(case.disturbed, number, "none", meanwhile=kill)


def disks(case: Case, times: int, draw: random.Random) -> Iterator[Trial]:
    """A full or failing disk at that many operations, and half as many sizes of files."""
    places = [(number, place + 1) for number in (0, 1) for place in range(case.operations[number])]
    for number, place in sorted(draw.sample(places, min(times, len(places)))):
        for fault in ("ENOSPC", "EIO"):
            yield f"{fault} at operation {place}", partial(case.disturbed, number, fault, place)
    # The output of the script is a file too, of a few thousand bytes.
    largest = max(path.stat().st_size for path in (case.folder / "whole").rglob("*") if path.is_file())
    for _ in range(times // 2):
        size = draw.randint(8_000, max(largest, 8_001))
        number = draw.randint(0, 1)
        yield f"EFBIG at {size} bytes", partial(case.disturbed, number, "EFBIG", size)
    whole = sum(path.stat().st_size for path in (case.folder / "whole").rglob("*") if path.is_file())
    for _ in range(times // 4):
        size = draw.randint(50_000, whole)
        yield f"tmpfs at {size} bytes", partial(_on_a_small_disk, case, size)


def everywhere(case: Case, fault: str, spared: Set[Operation] = frozenset()) -> Iterator[Ended]:
    """The fault at every operation of both scripts, but for some."""
    operations = {
        (number, name): place
        for number, names in enumerate(case.names)
        for place, name in enumerate(names, 1)
        if name.startswith("open" if fault == "torn" else ("open", "os.mkdir", "os.rename", "fsync"))
        and (number, name) not in spared
    }
    left, met = set(operations), set[Operation]()
    for operation, outcome, what in _chain(case, fault, spared):
        met.add(operation)
        if outcome != "same":
            left.discard(operation)
            yield f"{fault} at {operation}", outcome, what
    # What a run passes over, like an fsync of a folder, is tried once more: another fault may have ended that run. And
    # what is done a second or third time by no run that goes on from another one, in chains from the start.
    while left:
        before = len(left)
        for operation, outcome, what in _chain(case, fault, {*operations, *met, *spared} - left):
            left.discard(operation)
            met.add(operation)
            yield f"{fault} at {operation}", outcome, what
        if len(left) == before:
            break
    for number, name in left:
        trial = partial(case.disturbed, number, fault, operations[number, name])
        yield from _judged([(f"{fault} at {(number, name)}, alone", trial)])


def _chain(case: Case, fault: str, spared: Set[Operation]) -> Iterator[tuple[Operation, str, str]]:
    """Operations that fail, all but these, and how their runs end, each of which goes on where the one before ended.

    A run that goes on after a fault, "same" for that operation, meets more of them until one ends it.
    """
    work = case.folder / "disturbed"
    shutil.rmtree(work, ignore_errors=True)
    for number, script in enumerate(SCRIPTS):
        notes = case.folder / f"{fault}-{number}"
        seen = [name for script_of_it, name in spared if script_of_it == number]
        notes.write_text("".join(f"{name}\n" for name in seen))
        while True:
            done = case.run(script, work, fault, 0, notes.name)
            new = notes.read_text().splitlines()[len(seen) :]
            seen += new
            if not new:
                break
            try:
                outcome, what = case.outcome(done), ""
            except Bad as bad:
                outcome, what = "bad", str(bad)
            for name in new[:-1]:
                yield (number, name), "same", ""
            yield (number, new[-1]), outcome, what
    try:
        case.go_on(work, SCRIPTS, "all of it")
        case.compare(work, f"{fault} at any of these")
    except Bad as bad:
        yield (len(SCRIPTS), "any of these"), "bad", str(bad)


def _on_a_small_disk(case: Case, size: int) -> str:
    folder = case.folder / "disk"
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        return "not tried"
    try:
        outcome = case.outcome(case.run(SCRIPTS[0], folder / "work"))
        subprocess.run(["mount", "-o", "remount,size=50m", folder], check=True)  # some is freed
        case.go_on(folder / "work", SCRIPTS, outcome)
        case.compare(folder / "work", outcome)
        return outcome
    finally:
        subprocess.run(["umount", folder], check=True)


def servers(case: Case, times: int, draw: random.Random, server: LiarServer) -> Iterator[Trial]:
    """Both scripts at a server with all faults, and with each alone, as often as the others."""

    def disturbed(fault: str, seed: int) -> str:
        server.draw, server.fault, outcome = random.Random(seed), fault, "same"
        work = case.folder / "disturbed"
        shutil.rmtree(work, ignore_errors=True)
        for script in SCRIPTS:
            try:
                done = case.run(script, work, "impatient")
            finally:
                server.fault = ""
            if case.outcome(done) == "line":
                outcome = "line"
                case.go_on(work, [script], done.stderr[-2000:])
            server.fault = fault
        server.fault = ""
        case.compare(work, f"{outcome}, {done.stderr[-1000:]}")
        return outcome

    for fault in FAULTS:
        for _ in range(max(times // len(FAULTS), 1)):
            seed = draw.randrange(2**32)
            yield f"server, {fault} (seed {seed})", partial(disturbed, fault, seed)


def inject(kind: str, recipe: str, times: int, seed: int, folder: Path, beyond: Sequence[str] = ()) -> Iterator[Ended]:
    """What is done to one recipe's run."""
    draw = random.Random(f"{seed} {kind} {recipe}")
    fewer = {"train": 3, "index": 1, "test": 1} if kind == "every" else {}  # each further one is the same again
    with patch.dict(build.FEWEST_SHARDS, fewer):
        mirror = make_mirror(folder / "mirror")
    if kind == "server":
        with serving(mirror) as server:
            case = Case(recipe, server.url, folder, ["--patience=10s", "--strict", "--strict-md5"]).undisturbed()
            yield from _judged(servers(case, times, draw, server))
        return
    case = Case(recipe, str(mirror), folder).undisturbed()
    if kind == "every":
        others = [Case(other, str(mirror), folder / other).undisturbed() for other in beyond]
        spared = {(number, name) for other in others for number, names in enumerate(other.names) for name in names}
        for fault in ("ENOSPC", "EIO", "torn"):
            yield from everywhere(case, fault, spared)
    else:
        yield from _judged({"kill": kills, "disk": disks}[kind](case, times, draw))


def _judged(trials: Iterable[Trial]) -> Iterator[Ended]:
    for name, trial in trials:
        try:
            yield name, trial(), ""
        except Bad as bad:
            yield name, "bad", str(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", default="all", choices=[*KINDS, "all"])
    parser.add_argument("--times", type=int, default=100, help="faults of a kind for each recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument(
        "--beyond", nargs="+", default=[], choices=list(RECIPES),
        help="every: not at the operations, by their names, that the runs of these recipes have too",
    )  # fmt: skip
    given = parser.parse_args()
    counts: dict[tuple[str, str], Counter] = {}
    for kind in KINDS if given.kind == "all" else (given.kind,):
        for recipe in given.recipes:
            if (kind, recipe) == ("server", "triplet"):
                continue  # it needs any photo at any time: the mirror in a folder
            with tempfile.TemporaryDirectory() as folder:
                for name, outcome, what in inject(kind, recipe, given.times, given.seed, Path(folder), given.beyond):
                    fault = name.split(" at ")[0].split(" (")[0]
                    counts.setdefault((recipe, fault), Counter())[outcome] += 1
                    print(f"{recipe}: {name}: {outcome} {what}", file=sys.stderr, flush=True)
    print(
        "| recipe | fault | times | same bytes at once | killed, then the same | one clear line, then the same | bad |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (recipe, fault), count in counts.items():
        figures = [count.total(), *(count[outcome] for outcome in ("same", "killed", "line", "bad"))]
        print("|", " | ".join(map(str, (recipe, fault, *figures))), "|")
    return int(any(count["bad"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
