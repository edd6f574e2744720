"""What an accelerator reaches: training, embedding and search by back end, beside timm, in shares of its peak.

    python benchmarks/accelerator.py [--seconds 500] [--out FILE.jsonl]

Each part is a process of its own. On a machine without TensorFlow, JAX and PyTorch are measured; without an accelerator
nothing is.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

SEARCH = """
import json, os, sys, time
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from landmarks.neighbours import tiles
import keras, faiss

count, dimensions, queries = 4_132_914, 512, 117_577

def fill(place):
    number, rows = place
    generator = np.random.default_rng(number)
    rows[:] = generator.standard_normal(rows.shape, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[:] = rows.astype(np.float16)

photos, asked = np.empty((count, dimensions), np.float32), np.empty((queries, dimensions), np.float32)
with ThreadPoolExecutor() as pool:
    list(pool.map(fill, enumerate([*np.array_split(photos, 256), *np.array_split(asked, 16)])))
tiles.knn(asked[:2048], photos[: 2**17], 100)
began = time.perf_counter()
similarities, places = tiles.knn(asked[:64], photos[:500_000], 100)
expected, where = faiss.knn(asked[:64], photos[:500_000], 100, metric=faiss.METRIC_INNER_PRODUCT)
same = (places == where).mean()
most = np.abs(similarities - expected).max()
began = time.perf_counter()
for file in np.array_split(asked, 20):  # as many files as the test set has shards
    tiles.knn(file, photos, 100)
seconds = time.perf_counter() - began
print(f"search, {keras.backend.backend()}: {queries:,} x {count:,} x {dimensions}, top 100: {seconds:.1f} s; "
      f"{same:.2%} of 6,400 places as faiss has them, similarities differ by {most:.1e}")
with open(sys.argv[1], "a") as file:
    print(json.dumps({"question": "search", "backend": keras.backend.backend(), "seconds": seconds,
                      "same": float(same), "difference": float(most)}), file=file)
"""
PRESET = """
import sys, keras_hub
backbone = keras_hub.models.DINOV2Backbone(
    patch_size=14, num_layers=12, hidden_dim=768, num_heads=12, intermediate_dim=3072, num_register_tokens=0,
    use_mask_token=True, use_swiglu_ffn=False, image_shape=(518, 518, 3))
backbone.save_to_preset(sys.argv[1])
keras_hub.layers.DINOV2ImageConverter(image_size=(224, 224)).save_to_preset(sys.argv[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=500, help="begin no part after this time")
    parser.add_argument("--out", type=Path, default=Path("accelerator.jsonl"))
    parser.add_argument("--rival", action=argparse.BooleanOptionalAction, default=True, help="timm beside it")
    parser.add_argument("--parts", nargs="+", help="of all, like training-jax search-torch")
    given = parser.parse_args()
    began = time.monotonic()
    backends = [name for name in ("jax", "torch", "tensorflow") if find_spec(name)]
    with tempfile.TemporaryDirectory() as folder:
        net = ["--backbone=ResNet50", "--image-size=192", "--precision=mixed_bfloat16", "--busy", f"--json={given.out}"]
        rival = ["--rival=ResNet50"] * bool(find_spec("timm") and given.rival)
        decode = ["benchmarks/decode.py", "--photos=2048", "--width=640", "--turns=3", *net[3:]]
        parts = {"decode": (backends[0], decode)}
        for name in backends:
            parts[f"training-{name}"] = (
                name, ["benchmarks/training.py", *net, *rival, "--batch-size=256", "--steps=20", "--turns=3"],
            )  # fmt: skip
            parts[f"embedding-{name}"] = (
                name, ["benchmarks/embedding.py", *net, *rival, "--recipe=softmax", "--batch-size=256", "--batches=48"],
            )  # fmt: skip
        for name in backends:
            parts[f"search-{name}"] = name, ["-c", SEARCH, str(given.out)]
        if find_spec("keras_hub"):
            preset = f"{folder}/dinov2"
            parts["preset"] = backends[0], ["-c", PRESET, preset]
            for name in backends:
                parts[f"dino-{name}"] = name, [
                    "benchmarks/embedding.py", f"--backbone=hub:{preset}", "--preset", "--image-size=224",
                    "--precision=mixed_bfloat16", "--busy", f"--json={given.out}", "--recipe=dinov2-small",
                    "--batch-size=128", "--batches=48", *["--rival=DINOv2-B"] * bool(rival),
                ]  # fmt: skip
        for part, (backend, arguments) in parts.items():
            left = given.seconds - (time.monotonic() - began)
            if given.parts and part not in given.parts:
                continue
            if left < 20:
                print(f"{part}: no time left")
                continue
            environment = os.environ | {
                "KERAS_BACKEND": backend, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": _paths(),
                "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }  # fmt: skip
            start = time.monotonic()
            try:
                done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, timeout=left, text=True,
                                      capture_output=True)  # fmt: skip
                print(done.stdout.strip() if not done.returncode else f"{part} failed: {done.stderr[-1500:]}")
            except subprocess.TimeoutExpired:
                print(f"{part}: no time left")
            print(f"({part}: {time.monotonic() - start:.0f} s)", flush=True)


def _paths() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


if __name__ == "__main__":
    main()
