"""Where photos live: a mirror of the Google Landmarks layout at a URL, in a folder, or the built-in sample.

python mirror.py import FOLDER OUT [--non-landmarks FOLDER]     a folder per landmark becomes a mirror
python mirror.py fetch CSV OUT [--split train] [--size 512]     the 2018 form: id,url,landmark_id
python mirror.py shrink MIRROR OUT --size 256                   a small local copy
python mirror.py check MIRROR                                   read every shard and report each fault
"""

import argparse
import atexit
import hashlib
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pandas as pd

import command
from command import InputError
from shards import DamagedShard, FolderShard, TarShard
from tables import read_table

SPLITS = ("train", "index", "test")
SOLUTIONS = {
    "recognition": "ground_truth/recognition_solution_v2.1.csv",
    "retrieval": "ground_truth/retrieval_solution_v2.1.csv",
}
PHOTOS_PER_VIRTUAL_SHARD = 8192  # as many as a shard of the public mirror holds
SHARD_NAME = re.compile(r"images_\d{3,}")
MD5 = re.compile(r"\b[0-9a-f]{32}\b", re.IGNORECASE)


class Mirror(ABC):
    """The tables of a mirror; where its files and shards come from is up to `FolderMirror` and `WebMirror`."""

    def __init__(self, name: str):
        self.name = name
        self._tables: dict[str, pd.DataFrame] = {}

    @abstractmethod
    def path(self, relative: str) -> Path | None:
        """A metadata file on disk, downloaded first where need be; None when the mirror has none."""

    @abstractmethod
    def shard_names(self, split: str) -> list[str]:
        """The names of a split's shards, in order, as the mirror itself tells them; empty when it has none."""

    @abstractmethod
    def stream(self, split: str, names: list[str]) -> Iterator[TarShard | FolderShard]:
        """The shards of these names one after another, each closed when the next is asked for.

        Raises:
            InputError: a shard cannot be had, or is damaged.
        """

    @abstractmethod
    def fingerprint(self, split: str, name: str, earlier: str = "") -> str:
        """What tells a shard's photos from others at the same place; `earlier`, one of before, if it still holds.

        It is found without a download of the shard and without reading a photo: in a folder from the ids and sizes of
        the photos, of a URL from the published md5, which is empty where there is none.
        """

    def shard_ids(self, split: str, name: str) -> list[str] | None:
        """The ids of a shard's photos; None where only a download would tell."""
        return None

    def train(self) -> pd.DataFrame:
        """`id` (str) and `landmark_id` (int64) of every train photo; the same table each time, so leave it as it is.

        Raises InputError for a malformed file.
        """
        return self._table("train")

    def ids(self, split: str) -> list[str]:
        """The ids of a split's photos, in the order of its CSV."""
        return self._table(split)["id"].tolist()

    def categories(self) -> dict[int, str]:
        """Landmark ids to category names; empty where the mirror does not tell."""
        path = self.path("metadata/train_label_to_category.csv")
        if path is None:
            return {}
        table = read_table(path, ["landmark_id", "category"])
        return dict(zip(table["landmark_id"], table["category"], strict=True))

    def solution(self, task: str) -> Path | None:
        """The published solution of "recognition" or "retrieval", where there is one."""
        return self.path(SOLUTIONS[task])

    def published_md5(self, split: str, name: str) -> str | None:
        """The md5 that the mirror states for a shard, if it does."""
        path = self.path(f"md5sum/{split}/md5.{name}.txt")
        if path is None:
            return None
        with open(path, errors="replace") as file:
            stated = MD5.search(file.read(4096))
        return stated[0].lower() if stated else None

    def require(self, *splits: str) -> None:
        """Raise InputError unless the mirror has shards of each of these splits."""
        for split in splits:
            if not self.shard_names(split):
                raise InputError(
                    f"{self.name} is no mirror with {split} photos: it has neither {split}/images_000.tar nor a tree "
                    f"{split}/a/b/c/ID.jpg; give a mirror's URL or folder, or make one with `python mirror.py import`"
                )

    def _table(self, split: str) -> pd.DataFrame:
        """A split's CSV, read once: train.csv of the public mirror takes 5 seconds."""
        if split not in self._tables:
            path = self.path(f"metadata/{split}.csv")
            if path is None:
                raise InputError(f"{self.name} has no metadata/{split}.csv, which lists its {split} photos")
            table = read_table(path, ["id", "landmark_id"] if split == "train" else ["id"])
            if table.empty:
                raise InputError(f"{path} lists no photo")
            self._tables[split] = table
        return self._tables[split]


class FolderMirror(Mirror):
    """A mirror in a folder: its shards are read in place and never deleted.

    A split may be tar shards or an extracted tree `SPLIT/a/b/c/ID.jpg`, which is grouped into virtual shards; the CSVs
    may lie in `metadata/` or, as in a Kaggle competition's input folder, beside the splits.
    """

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.folder = folder
        self._tree_ids: dict[str, list[str]] = {}

    def path(self, relative: str) -> Path | None:
        return next((p for p in (self.folder / relative, self.folder / Path(relative).name) if p.is_file()), None)

    def shard_names(self, split: str) -> list[str]:
        tars = sorted(
            path.stem for path in (self.folder / split).glob("images_*.tar") if SHARD_NAME.fullmatch(path.stem)
        )
        virtual = -(-len(self._ids_of_tree(split)) // PHOTOS_PER_VIRTUAL_SHARD) if not tars else 0
        return tars or [f"images_{number:03d}" for number in range(virtual)]

    def ids(self, split: str) -> list[str]:
        listed = self.path(f"metadata/{split}.csv") is not None
        return (not listed and self._ids_of_tree(split)) or super().ids(split)

    def stream(self, split: str, names: list[str]) -> Iterator[TarShard | FolderShard]:
        for name in names:
            with closing(self._open(split, name)) as shard:
                yield shard

    def fingerprint(self, split: str, name: str, earlier: str = "") -> str:
        """As `Mirror.fingerprint`. A tar's size and time come first: while they stay, its directory need not be read.

        For 500 tars of 8,192 photos that would take two minutes.
        """
        path = self.folder / split / f"{name}.tar"
        stamp = f"{path.stat().st_size} {path.stat().st_mtime_ns}" if path.exists() else "tree"
        if stamp != "tree" and earlier.startswith(f"{stamp} "):
            return earlier
        with closing(self._open(split, name)) as shard:
            photos = "\n".join([f"{identity} {shard.size(identity)}" for identity in shard.ids])
        digest = hashlib.md5(photos.encode(), usedforsecurity=False).hexdigest()
        return earlier if earlier.endswith(f" {digest}") else f"{stamp} {digest}"

    def shard_ids(self, split: str, name: str) -> list[str]:
        with closing(self._open(split, name)) as shard:
            return shard.ids

    def _open(self, split: str, name: str) -> TarShard | FolderShard:
        path = self.folder / split / f"{name}.tar"
        if path.exists():
            try:
                return TarShard(path)
            except DamagedShard as damage:
                raise DamagedShard(f"damaged shard {damage}; copy it to the mirror again") from damage
        begin = int(name.removeprefix("images_")) * PHOTOS_PER_VIRTUAL_SHARD
        ids = self._ids_of_tree(split)[begin : begin + PHOTOS_PER_VIRTUAL_SHARD]
        return FolderShard(self.folder / split, name, ids)

    def _ids_of_tree(self, split: str) -> list[str]:
        """The sorted ids of an extracted tree: from its CSV, the sample submission, or else the tree itself."""
        if split not in self._tree_ids:
            root = self.folder / split
            sample = self.path("sample_submission.csv") if split == "test" else None
            if not root.is_dir() or next(root.glob("images_*.tar"), None):
                ids = []
            elif self.path(f"metadata/{split}.csv") and any(root.glob("?/?/?/*.jpg")):
                ids = super().ids(split)
            elif sample and any(root.glob("?/?/?/*.jpg")):
                ids = read_table(sample, ["id"])["id"].tolist()
            else:
                ids = [path.stem for path in root.glob("?/?/?/*.jpg")]
            self._tree_ids[split] = sorted(ids)
        return self._tree_ids[split]


def open_mirror(
    source: str, cache: Path | None = None, ahead: int = 1, strict_md5: bool = False, seed: int = 0
) -> Mirror:
    """Open a mirror at a URL, in a folder, or `sample`, the built-in one, made in `cache` if it is not there yet.

    Args:
        cache: the folder that downloads and the sample go to; a folder of this process' own when None.

    Raises:
        InputError: there is no such folder.
    """
    if cache is None:
        cache = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    if source.startswith(("http://", "https://")):
        from web_mirror import WebMirror  # which is a Mirror of this file

        return WebMirror(source, cache, ahead, strict_md5)
    if source == "sample":
        from sample import make_sample

        folder = cache / f"sample-{seed}"
        if not folder.exists():
            make_sample(folder, seed)
        return FolderMirror(folder)
    if not Path(source).is_dir():
        raise InputError(
            f"mirror {source!r} is no folder; give `sample`, a URL with http:// or https://, or a "
            "folder, such as `python mirror.py shrink` and `import` make"
        )
    return FolderMirror(Path(source))


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) < 2**31):
            raise argparse.ArgumentTypeError(f"{text[:100]!r} is no whole number of {least} or more")
        return int(text)

    return parse


def main() -> int | None:
    import check
    import convert

    parser = command.Parser(description="Make, shrink and check mirrors.")
    commands = parser.add_subparsers(dest="command", required=True)

    importing = commands.add_parser("import", help="a folder per landmark becomes a mirror with solutions")
    importing.add_argument("folder", type=Path, help="holds one folder of photos a landmark; its name is the category")
    importing.add_argument("out", type=Path)
    importing.add_argument("--non-landmarks", type=Path, help="a folder of photos that show no landmark")
    importing.add_argument(
        "--seed", type=_at_least(0), default=0, help="of the split into train, index and test (default 0)"
    )

    fetching = commands.add_parser("fetch", help="photos listed by URL (id,url,landmark_id) become a mirror")
    fetching.add_argument("csv", type=Path)
    fetching.add_argument("out", type=Path)
    fetching.add_argument(
        "--split", choices=[*SPLITS, "divide"], default="train",
        help="the split that the photos go to; `divide` splits them like import does (default train)",
    )  # fmt: skip
    fetching.add_argument(
        "--size", type=_at_least(1), default=512, help="shorter side in pixels, at most (default 512)"
    )
    fetching.add_argument("--threads", type=_at_least(1), default=16, help="downloads at a time (default 16)")
    fetching.add_argument("--seed", type=_at_least(0), default=0, help="of --split divide (default 0)")

    shrinking = commands.add_parser("shrink", help="a copy of a mirror with small photos")
    shrinking.add_argument("mirror", help="sample, a URL or a folder")
    shrinking.add_argument("out", type=Path)
    shrinking.add_argument("--size", type=_at_least(1), required=True, help="shorter side in pixels, at most")

    checking = commands.add_parser("check", help="read everything and report each fault")
    checking.add_argument("mirror", help="sample, a URL or a folder")

    arguments = vars(parser.parse_args())
    actions = {
        "import": convert.import_folder,
        "fetch": convert.fetch,
        "shrink": convert.shrink,
        "check": check.check,
    }
    return actions[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    command.run(main)
