"""What a frozen ImageNet net gets without any training, on any mirror: what a trained one has to beat.

    python benchmarks/frozen.py [MIRROR] [--image-size 192] [--work DIR]

EfficientNet-Lite0, GeM pooling with p = 3. Recognition: the landmark of the nearest train photo, its similarity as the
score. Retrieval: cosine similarity, plain and re-ranked by the landmark of the nearest train photo (factor 1.5).
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from landmarks.running import command

command.prepare_backend()

import numpy as np

import features
import model as models
from landmarks.mirrors.open import open_mirror
from landmarks.neighbours import rerank, search, voting
from landmarks.running.settings import EmbeddingSettings, ModelSettings
from landmarks.scoring import scores, submissions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mirror", nargs="?", default="sample")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--work", type=Path, default=None, help="where features are kept (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(arguments.mirror, arguments.image_size, arguments.work or Path(temporary))


def measure(source: str, image_size: int, work: Path) -> None:
    mirror = open_mirror(source, work / "mirror")
    frozen = models.build_model(2, ModelSettings(pooling="gem"))  # the head is not used
    settings = EmbeddingSettings(mirrored=False)
    predictor = models.predictor(frozen, settings.mirrored)
    files = {
        split: features.embed(predictor, np.arange(2), mirror, split, work, settings, image_size, batch_size=32) or []
        for split in ("train", "index", "test")
    }
    nearest = {
        split: voting.recognise(files[split], files["train"], mirror.train(), votes=1, power=1, parts=1)
        for split in ("index", "test")
    }
    submissions.write_recognition(
        work / "recognition.csv",
        mirror.ids("test"),
        nearest["test"]["landmark"].to_dict(),
        nearest["test"]["score"].to_dict(),
    )
    print("recognition by the nearest train photo")
    scores.write_scores(
        "recognition", work / "recognition.csv", mirror.solution("recognition"), work / "recognition.metrics.json"
    )

    plain = search.search(files["test"], files["index"], k=300)
    labelled = plain._replace(
        query_landmark=nearest["test"]["landmark"].loc[plain.query_ids].to_numpy(),
        index_landmark=nearest["index"]["landmark"].loc[plain.index_ids].to_numpy(),
    )
    for name, neighbours in (("retrieval-plain", plain), ("retrieval", rerank.same_landmark(labelled))):
        ids, positions = neighbours.query_ids.tolist(), neighbours.positions[:, :100]
        rows = dict(zip(ids, (neighbours.index_ids[row[row >= 0]].tolist() for row in positions), strict=True))
        submissions.write_retrieval(
            work / "retrieval.csv", mirror.ids("test"), (rows.get(photo, []) for photo in mirror.ids("test"))
        )
        print("plain" if neighbours is plain else "re-ranked")
        scores.write_scores(
            "retrieval", work / "retrieval.csv", mirror.solution("retrieval"), work / f"{name}.metrics.json"
        )


if __name__ == "__main__":
    command.run(main)
