"""What a run takes before it starts, stage by stage: hours, and what bounds them, network, disk and memory."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from landmarks.mirrors.base import SPLITS, Mirror
from landmarks.neighbours import approximate
from landmarks.networks.whitening import FOLDS, SHRINKAGES
from landmarks.running.answer_settings import RecognitionSettings, RetrievalSettings, VerificationSettings
from landmarks.running.settings import EmbeddingSettings, PhotoSettings, RunSettings, TrainingSettings
from landmarks.training.forecast import ADAM, BYTES, Needs
from landmarks.training.rates import Device
from landmarks.training.selection import learnt

PHOTO = 121e3  # bytes of a photo of the public mirror, where nobody can tell the mirror's own
START = 15.0  # seconds for a command to load Keras and the model, and to write its report
EIGENVECTORS = 13.0  # multiply-adds of a product, by the cube of a matrix' side: numpy's eigh of 768, 1,280 and 2,048
PRODUCTS = 100e9  # multiply-adds a second, in products of matrices, of the machine that `cpu` and these are of, idle
SAVED = 70e6  # bytes of a checkpoint a second: one of 42 MB took 0.9 seconds of a core on a busy machine
IMPORTS = 1e9  # bytes of memory for these
TRAINED_HEAD = 6.5  # bytes of memory for each of its weights' while a head is trained (benchmarks/head_memory.py)
ROW = 180.0  # bytes of memory for a row of a mirror's table (benchmarks/tables.py)
IDENTITY = 64.0  # bytes of memory for an id
FEATURES_PER_PHOTO = 1000 * 48.0  # bytes on disk for the local features of a photo, as DELF has them
RERANKED = 49e3  # neighbours a second of a core that are re-ranked by neighbours (benchmarks/rerank.py)


class Counts(NamedTuple):
    """What a mirror holds."""

    photos: Mapping[str, int]  # by split
    shards: Mapping[str, int]
    bytes: Mapping[str, float]  # of the photos
    learnt: int  # train photos that are learnt from
    classes: int  # and landmarks
    is_remote: bool  # at a URL

    def times(self, factor: int) -> "Counts":
        """Of a mirror so many times as large."""
        return Counts(
            {split: number * factor for split, number in self.photos.items()},
            {split: number * factor for split, number in self.shards.items()},
            {split: size * factor for split, size in self.bytes.items()},
            self.learnt * factor, self.classes * factor, self.is_remote,
        )  # fmt: skip


class Stage(NamedTuple):
    """What a stage takes."""

    name: str
    seconds: float
    bound_by: str
    machines: int  # that share it
    network: float = 0.0  # bytes, of all machines together
    disk: float = 0.0  # bytes that stay
    memory: float = 0.0  # bytes, of a machine


class Machine(NamedTuple):
    """What one machine does a second."""

    decoded: float  # photos, by all its cores
    received: float  # bytes over the network
    products: float  # multiply-adds of matrices, by its cores
    saved: float  # bytes of a checkpoint
    has_accelerator: bool  # which makes the passes; else the cores do that and decode
    cube: float = EIGENVECTORS  # what those take by the cube of a side


def public(clean: bool) -> Counts:
    """The Google Landmarks Dataset v2 at its own URL, as published, without asking for it.

    Landmarks with few photos count too, whatever `min_images` says: only the table itself tells how many there are.
    """
    return Counts(
        {"train": 4_132_914, "index": 761_757, "test": 117_577}, {"train": 500, "index": 100, "test": 20},
        {"train": 500e9, "index": 85e9, "test": 10e9},
        *((1_580_470, 81_313) if clean else (4_132_914, 203_094)), True,
    )  # fmt: skip


def counted(mirror: Mirror, settings: PhotoSettings, work: Path, is_remote: bool) -> Counts:
    """Of any mirror, as its tables and shards tell; a photo at a URL is taken to be as large as the public ones."""
    there = [split for split in SPLITS if mirror.shard_names(split)]
    photos = {split: len(mirror.ids(split)) for split in there}
    sizes = {split: sum(path.stat().st_size for path in Path(mirror.name, split).glob("*.tar")) for split in there}
    trained, landmarks = learnt(settings, mirror, work)
    return Counts(
        photos, {split: len(mirror.shard_names(split)) for split in there},
        {split: sizes[split] or photos[split] * PHOTO for split in there},
        int(trained["landmark_id"].isin(landmarks).sum()), len(landmarks), is_remote,
    )  # fmt: skip


def network_stages(
    needs: Needs, pass_seconds: float, machine: Machine, counts: Counts, training: TrainingSettings,
    embedding: EmbeddingSettings, machines: int, splits: Collection[str], cached: float = 0, minutes: float = 0,
    trained_by: int = 1,
) -> list[Stage]:  # fmt: skip
    """Training and embedding by one model; photos are streamed through, so the slowest of three bounds a stage.

    Shards are read anew in each epoch. Shards are embedded by all machines.

    Args:
        pass_seconds: of one machine.
        splits: what is embedded.
        cached: the part of the photos that are learnt from which is kept decoded after the first epoch.
        minutes: between checkpoints; 0: one after each mini-epoch.
        trained_by: so many machines together; what they wait for each other's gradients is left out.
    """

    def stage(name: str, passes: float, split: str, times: float, share: float, shared_by: int, disk: float) -> Stage:
        """Args: how many times the split's photos are read, and the share of them that is decoded."""
        streamed = times * counts.bytes[split]
        received = streamed * counts.is_remote
        decoded = times * counts.photos[split] * share * (len(embedding.scales) if name.startswith("embed") else 1)
        seconds = {
            "network's passes": passes * pass_seconds + decoded / machine.decoded * (not machine.has_accelerator),
            "decoding": decoded / machine.decoded,
            "download": received / machine.received,
        }
        bound = max(seconds, key=lambda one: seconds[one])
        ahead = received / times / counts.shards[split] * 2
        memory = IMPORTS + ROW * counts.photos[split] + needs.weights * BYTES
        return Stage(name, seconds[bound] / shared_by, bound, shared_by, received, disk + ahead, memory)

    found, kept = [], BYTES / 2 * needs.dimensions + IDENTITY
    if needs.trained:
        checkpoints = needs.weights * BYTES * 7
        one = stage(
            "train", needs.trained, "train", 1 + (training.epochs - 1) * (1 - cached),
            counts.learnt / counts.photos["train"], trained_by, checkpoints,
        )  # fmt: skip
        found.append(one._replace(memory=one.memory + needs.weights * BYTES * (TRAINED_HEAD - 1)))
        saves = one.seconds / (60 * minutes) if minutes else needs.mini_epochs
        seconds = saves * needs.weights * BYTES * ADAM / machine.saved
        found.append(Stage("checkpoints", seconds, "the disk", 1, memory=one.memory))
    if needs.validated:
        found.append(Stage("validate", needs.validated * pass_seconds, "network's passes", 1, memory=found[0].memory))
    if embedding.whitening != "none":
        photos, size = min(counts.learnt, embedding.whitening_photos), needs.unwhitened
        products = products_of_whitening(photos, size, embedding.dimensions, machine.cube)
        found.append(
            Stage("whiten", products / machine.products, "products", 1, memory=IMPORTS + 8 * size * (photos + 3 * size))
        )
    for split in splits:
        shared_by, photos = min(machines, counts.shards[split]), counts.photos[split]
        found.append(stage(f"embed {split}", photos * needs.embedded, split, 1, 1, shared_by, photos * kept))
    return found


def products_of_whitening(photos: int, size: int, kept: int, cube: float = EIGENVECTORS) -> float:
    """Multiply-adds to choose the shrinkage of a whitening and to find it: of `whitening.fit`.

    Args:
        cube: those that eigenvectors take, for each cube of a matrix' side.
    """

    def fit(photos: float, shrinkages: int) -> float:
        rank = min(photos, size)
        spectrum = photos * size * rank * (2 if photos < size else 1) + cube * rank**3
        each = size**2 * rank + (size**2 * (photos + kept) + spectrum if kept else 0)
        return spectrum + shrinkages * each

    return FOLDS * fit(photos * (1 - 1 / FOLDS), len(SHRINKAGES)) + fit(photos, 1)


def search_stage(
    counts: Counts, dimensions: int, device: Device, run: RunSettings, recognition: RecognitionSettings,
    retrieval: RetrievalSettings, machines: int,
) -> list[Stage]:  # fmt: skip
    """For the train photos nearest to test and index photos, and the index photos nearest to test photos.

    The machines share what is searched exactly, each a part of the index at a time.
    """
    test, index, train = (counts.photos.get(split, 0) for split in ("test", "index", "train"))
    by_head = recognition.recognizer == "head"
    voting = counts.classes if recognition.recognizer == "centres" else train
    depth = max(100, retrieval.rerank_depth * retrieval.rerank)
    asked = [] if by_head else [(test, voting, recognition.votes)]
    if index:
        asked += [(test, index, depth)] + [(index, voting, 1)] * (retrieval.rerank and not by_head)
    exact, made = run.search == "exact", {}
    seconds, disk, width = 0.0, 0.0, dimensions / 512
    for queries, photos, k in asked:
        if exact or photos < approximate.FEWEST:
            seconds += queries * photos * dimensions / device.rates.exact.value
            continue
        lists = approximate.lists_of(photos)
        told = max(approximate.LEAST, approximate.CANDIDATES * k)
        made[photos] = photos * lists * dimensions / device.rates.listed.value
        seconds += queries * photos * approximate.PROBED / lists * width / device.rates.codes.value
        seconds += queries * told * width / device.rates.told.value
        disk += photos * (dimensions / 8 + 2)
    most = max((photos for _, photos, _ in asked), default=0)
    shared_by = machines if exact else 1
    part = most / max(run.index_parts, shared_by) * dimensions * BYTES
    memory = IMPORTS + part + most * (IDENTITY + ROW) + max((q * k for q, _, k in asked), default=0) * 8
    bound = "products" if exact else "scanned lists"
    found = [Stage("search", seconds / shared_by, bound, shared_by, disk=disk, memory=memory)]
    if made:
        found.insert(0, Stage("search: lists", sum(made.values()), "products", 1, memory=memory))
    if retrieval.rerank_neighbours != "none" and index:
        again = index * index * dimensions / device.rates.exact.value * (retrieval.rerank_neighbours == "reciprocal")
        each = test * retrieval.neighbours_depth / RERANKED / device.cores
        found.append(Stage("re-rank", each + again, "neighbours", 1, memory=memory))
    return found


def verification_stage(
    counts: Counts, device: Device, machine: Machine, settings: VerificationSettings, machines: int
) -> list[Stage]:
    """Local features of the test photos and of as many train photos as there is room for, and their comparisons."""
    if settings.verify == "off":
        return []
    test, train = counts.photos["test"], counts.photos["train"]
    each = FEATURES_PER_PHOTO * settings.local_points / 1000
    candidates = min(train, test * settings.comparisons, max(settings.local_gigabytes * 1e9 / each - test, 0))
    photos = (test + candidates) * (settings.local_size / 512) ** 2
    received = (counts.bytes["test"] + counts.bytes["train"]) * counts.is_remote
    seconds = {
        "local features": photos / device.rates.extract.value,
        "download": received / machine.received,
    }
    bound = max(seconds, key=lambda one: seconds[one])
    shared_by = min(machines, counts.shards["train"])
    compared = test * settings.comparisons / device.rates.compare.value
    disk = (test + candidates) * each
    return [
        Stage("verify: features", seconds[bound] / shared_by, bound, shared_by, received, disk, 2 * IMPORTS),
        Stage("verify: pairs", compared, "comparisons", 1, memory=2 * IMPORTS),
    ]
