"""Seconds to write, check and score submissions of the public test set's size: 117,577 rows, 100 ids each.

    python benchmarks/scoring.py [--rows 117577]

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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from landmarks.running import history
from landmarks.scoring import scores, solutions, submissions

INDEX_IMAGES = 761_757
LANDMARKS = 203_094


@contextmanager
def seconds(what: str):
    begin = time.perf_counter()
    yield
    print(f"{what:<40}{time.perf_counter() - begin:6.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time writing, checking and scoring.")
    parser.add_argument("--rows", type=int, default=117_577, help="test images (default: as the public test set has)")
    rows = parser.parse_args().rows
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
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
