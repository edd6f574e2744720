"""Seconds to write, check and score submissions of the public test set's size: 117,577 rows, 100 ids each.

    python benchmarks/scoring.py [--rows 117577] [--json FILE]

They are compared with the plain definition in Python, which takes a sample of the rows: lists as they stand in the
files, and every measure of every query on its own, as the published code has them.
Files are made in a temporary folder (about 400 MB). One in ten test images is ignored; of the others every query has
1 to 300 of the 761,757 index ids right, so that more work is done than on the real files, which score 1,129 queries.
"""

import argparse
import csv
import random
import resource
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timing
from landmarks.running import history
from landmarks.scoring import scores, solutions, submissions

INDEX_IMAGES = 761_757
LANDMARKS = 203_094


@contextmanager
def seconds(what: str):
    begin = time.perf_counter()
    yield
    print(f"{what:<40}{time.perf_counter() - begin:6.2f} s", flush=True)


def write_plainly(path: Path, test_ids: list[str], lists: list[list[str]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "images"])
        for identity, found in zip(test_ids, lists, strict=False):
            writer.writerow([identity, " ".join(found)])


def score_plainly(path: Path, truth: dict[str, list[str]]) -> list[float]:
    """mAP@100, P@k and the mean and median position by their definitions."""
    with open(path, newline="") as file:
        found = {row["id"]: row["images"].split(" ") for row in csv.DictReader(file)}
    average, precisions, positions = 0.0, {k: 0.0 for k in scores.PRECISION_RANKS}, []
    for query, relevant in truth.items():
        hits, seen = [], []
        for image in found[query][:100]:
            hits.append(image in relevant and image not in seen)
            seen.append(image)
        right = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(len(hits)) if hits[rank]]
        average += sum(right) / min(len(relevant), 100)
        for k in precisions:
            precisions[k] += sum(hits[:k]) / k
        positions.append(hits.index(True) + 1 if any(hits) else 101)
    return [average / len(truth), *(total / len(truth) for total in precisions.values()), *positions]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time writing, checking and scoring.")
    parser.add_argument("--rows", type=int, default=117_577, help="test images (default: as the public test set has)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--json", type=Path, help="add lines to this file")
    given = parser.parse_args()
    timing.require_idle(given.busy)
    rows = given.rows
    print(history.stamp(), flush=True)
    generator = random.Random(0)
    test_ids = [f"{number:016x}" for number in generator.sample(range(2**63 - 1), rows)]
    index_ids = [f"{number:016x}" for number in generator.sample(range(2**63 - 1), INDEX_IMAGES)]
    usages = generator.choices(["Ignored", "Public", "Private"], [1, 3, 6], k=rows)
    windows = [(generator.randrange(INDEX_IMAGES - 300), generator.randint(1, 300)) for _ in test_ids]
    labels = generator.choices(range(LANDMARKS), k=rows)

    def neighbours():
        for begin, count in windows:  # as many of the right images as go in, among wrong ones
            yield generator.sample(index_ids[begin : begin + 2 * count + 100], 100)

    with tempfile.TemporaryDirectory() as name:
        recognition, retrieval = Path(name, "recognition.csv"), Path(name, "retrieval.csv")
        recognition_solution, retrieval_solution = Path(name, "landmarks.csv"), Path(name, "images.csv")
        with open(retrieval_solution, "w", newline="") as images, open(recognition_solution, "w", newline="") as marks:
            csv.writer(images).writerow(["id", "images", "Usage"])
            csv.writer(marks).writerow(["id", "landmarks", "Usage"])
            for identity, usage, (begin, count), label in zip(test_ids, usages, windows, labels, strict=True):
                cell = "None" if usage == "Ignored" else " ".join(index_ids[begin : begin + count])
                csv.writer(images).writerow([identity, cell, usage])
                csv.writer(marks).writerow([identity, label if count > 200 else "", usage])
        landmarks = {i: label + generator.randrange(2) for i, label in zip(test_ids, labels, strict=True)}
        confidence = {identity: generator.random() for identity in test_ids}

        with seconds(f"write {rows:,} recognition rows"):
            submissions.write_recognition(recognition, test_ids, landmarks, confidence)
        with seconds("score them"):
            scores.score_recognition(recognition, recognition_solution)
        with seconds(f"write {rows:,} retrieval rows (draws them)"):
            submissions.write_retrieval(retrieval, test_ids, neighbours())
        with seconds("check them"):
            assert not submissions.check("retrieval", retrieval, test_ids, index_ids)
        with seconds("read their solution"):
            solution = solutions.read_retrieval_solution(retrieval_solution)
        with seconds("read them"):
            submissions.read_retrieval(retrieval, solution)
        del solution
        with seconds("read both and score"):
            scores.score_retrieval(retrieval, retrieval_solution)

        lists, some, sample = list(neighbours()), Path(name, "some.csv"), max(rows // 20, 1)

        def ours() -> float:
            submissions.write_retrieval(retrieval, test_ids, lists)
            scores.score_retrieval(retrieval, retrieval_solution)
            return rows

        def plain() -> float:
            write_plainly(some, test_ids[:sample], lists)
            with open(retrieval_solution, newline="") as file:
                truth = {row["id"]: row["images"].split(" ") for row in islice(csv.DictReader(file), sample)
                         if row["Usage"] != "Ignored"}  # fmt: skip
            score_plainly(some, truth)
            return sample

        rates = timing.in_turns({"ours": ours, "plain Python": plain}, given.turns, warm_up=0)
    aim = "in 5 s"
    rates[aim] = [rows / 5] * given.turns
    pairs = [("ours", "plain Python", 20.0), ("ours", aim, 1.0)]
    timing.report(f"writing and scoring {rows:,} retrieval rows", rates, "rows/s", pairs, given.json)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
