"""What each step gains: a frozen net, softmax, triplets and ArcFace on one mirror, over several seeds, as a table.

    python benchmarks/recipes.py [MIRROR] [--seeds 3] [--work DIR] [--half private]

Below the recipes come the settings that are off by default, each on the model of the ArcFace recipe. A run that is done
is kept in `--work`, so the same command goes on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
RECIPES = {"softmax": "small", "triplet": "small-triplet", "ArcFace": "small-arcface"}
RECOGNITION = {  # settings of recognition.py
    "by the head": ["--recognizer", "head"],
    "by class centres": ["--recognizer", "centres"],
    "5 votes to the power 8": ["--votes", "5", "--vote-power", "8"],
    "blended with the head, power 1": ["--blend", "1"],
    "penalty published": ["--penalty", "published", "--non-landmarks", "other-half"],
    "penalty winners": ["--penalty", "winners", "--non-landmarks", "other-half"],
}
RETRIEVAL = {  # and of retrieval.py
    "distance / 1.5 of the same landmark": ["--rerank-by", "divide"],
    "soft": ["--rerank-by", "soft"],
    "sort and insert": ["--rerank-by", "insert"],
    "query expansion, 3": ["--query-expansion", "3"],
    "database augmentation, 3": ["--database-augmentation", "3"],
    "both": ["--query-expansion", "3", "--database-augmentation", "3"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mirror", nargs="?", default="sample")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="where runs are kept (default: a temporary folder)")
    parser.add_argument("--half", choices=["public", "private"], default="private", help="of the solution")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(arguments.mirror, range(arguments.seeds), arguments.work or Path(temporary), arguments.half)


def measure(mirror: str, seeds: range, work: Path, half: str) -> None:
    frozen = work / "frozen"
    began = time.monotonic()
    if not (frozen / "retrieval.metrics.json").exists():
        call("benchmarks/frozen.py", mirror, "--work", frozen)
        (frozen / "minutes.json").write_text(str((time.monotonic() - began) / 60))
    print("| recipe | GAP | top-1 | mAP@100 plain | re-ranked | minutes |\n|---|---|---|---|---|---|")
    print_row("frozen", [figures(frozen, half)])
    runs = [(name, seed) for seed in seeds for name in RECIPES]
    for name, seed in tqdm(runs, unit=" runs"):
        run(work / f"{name}-{seed}", ["--recipe", RECIPES[name], "--mirror", mirror, "--seed", seed])
    for name in RECIPES:
        print_row(name, [figures(work / f"{name}-{seed}", half) for seed in seeds])

    models = [work / f"ArcFace-{seed}" for seed in seeds]
    print("\n| ArcFace, recognition | GAP | top-1 |\n|---|---|---|")
    for name, settings in RECOGNITION.items():
        rows = []
        for model in models:
            call("recognition.py", "--work", model, *settings)
            rows.append([score(model, "recognition", half, figure) for figure in ("gap", "top1")])
        print_row(name, rows)
    print("\n| ArcFace, retrieval | mAP@100 plain | re-ranked |\n|---|---|---|")
    for name, settings in RETRIEVAL.items():
        rows = []
        for model in models:
            call("recognition.py", "--work", model)  # the recipe's own settings again
            row = []
            for rerank in ("--no-rerank", "--rerank"):
                call("retrieval.py", "--work", model, rerank, *settings)
                row.append(score(model, "retrieval", half, "map@100"))
            rows.append(row)
        print_row(name, rows)


def run(work: Path, settings: list) -> None:
    """Both scripts, then retrieval without re-ranking; nothing where that is done."""
    if (work / "retrieval-plain.metrics.json").exists():
        return
    began = time.monotonic()
    call("recognition.py", "--work", work, *settings)
    call("retrieval.py", "--work", work)
    minutes = (time.monotonic() - began) / 60
    reranked = (work / "retrieval.metrics.json").read_text()
    call("retrieval.py", "--work", work, "--no-rerank")
    (work / "minutes.json").write_text(str(minutes))
    (work / "retrieval.metrics.json").replace(work / "retrieval-plain.metrics.json")
    (work / "retrieval.metrics.json").write_text(reranked)


def figures(work: Path, half: str) -> list[float]:
    return [
        score(work, "recognition", half, "gap"),
        score(work, "recognition", half, "top1"),
        score(work, "retrieval-plain", half, "map@100"),
        score(work, "retrieval", half, "map@100"),
        json.loads((work / "minutes.json").read_text()),
    ]


def score(work: Path, task: str, half: str, name: str) -> float:
    return json.loads((work / f"{task}.metrics.json").read_text())[half][name]


def print_row(name: str, runs: list[list[float]]) -> None:
    """The mean over the seeds, and how far the farthest is from it."""
    means = np.mean(runs, axis=0)
    spread = np.abs(runs - means).max(axis=0)
    cells = [f"{mean:.3f}" + f" ± {far:.3f}" * (len(runs) > 1) for mean, far in zip(means, spread, strict=True)]
    if len(cells) == 5:
        cells[4] = f"{means[4]:.1f}"
    print("|", " | ".join([name, *cells]), "|")


def call(script: str, *arguments) -> None:
    done = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script} {' '.join(map(str, arguments))}: {done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
