"""How much memory the head of ArcFace takes while it is trained, for each landmark, and so for the whole data set.

    python benchmarks/head_memory.py

Each size is trained for two steps in a process of its own; the slope of the peak memory (the process' largest resident
set) over the number of landmarks is the head's: backbone and libraries are in the intercept.
"""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

LANDMARKS = (10_000, 20_000, 40_000)
DIMENSION, CENTRES, BATCH = 512, 3, 64


def peak(landmarks: int) -> float:
    """GB at most resident in this process after two steps of a head over so many landmarks."""
    from landmarks.running import command

    command.prepare_backend()
    import keras

    from landmarks.networks.layers import CosineHead
    from landmarks.networks.losses import ArcFace

    embeddings = keras.Input((DIMENSION,))
    model = keras.Model(embeddings, CosineHead(landmarks, CENTRES)(embeddings))
    model.compile("adam", ArcFace(30.0))
    generator = np.random.default_rng(0)
    targets = np.stack([generator.integers(0, landmarks, BATCH), np.full(BATCH, 0.3)], axis=1).astype("float32")
    for _ in range(2):
        model.train_on_batch(generator.normal(size=(BATCH, DIMENSION)).astype("float32"), targets)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    if len(sys.argv) > 1:
        print(peak(int(sys.argv[1])))
        return
    peaks = []
    for landmarks in LANDMARKS:
        done = subprocess.run([sys.executable, __file__, str(landmarks)], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
        print(f"{landmarks:,} landmarks: {peaks[-1]:.2f} GB in all")
    slope = np.polyfit(LANDMARKS, peaks, 1)[0]
    weights = DIMENSION * CENTRES * 4 / 1e9
    print(f"a landmark: {slope * 1e6:.1f} KB, {slope / weights:.1f} times its weights")
    for landmarks in (81_313, 203_094):
        print(f"{landmarks:,} landmarks: weights {weights * landmarks:.1f} GB, training {slope * landmarks:.1f} GB")


if __name__ == "__main__":
    main()
