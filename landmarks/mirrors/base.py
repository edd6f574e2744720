"""What every mirror has: the tables, and shards that are listed and streamed."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from landmarks.mirrors.shards import Shard, TarShard
from landmarks.mirrors.tables import read_table
from landmarks.running.command import InputError
from landmarks.running.digest import digest

if TYPE_CHECKING:
    import pandas as pd

    from landmarks.running.settings import MirrorSettings

SPLITS = ("train", "index", "test")
SOLUTIONS = {
    "recognition": "ground_truth/recognition_solution_v2.1.csv",
    "retrieval": "ground_truth/retrieval_solution_v2.1.csv",
}
CATEGORIES = "metadata/train_label_to_category.csv"
NON_LANDMARKS = "metadata/non_landmarks.csv"  # index photos that are known to show no landmark
MD5 = re.compile(r"\b[0-9a-f]{32}\b", re.IGNORECASE)


class Mirror(ABC):
    """The tables of a mirror; where its files and shards come from is up to `FolderMirror` and `WebMirror`."""

    def __init__(self, name: str, settings: "MirrorSettings | None" = None):
        from landmarks.running.settings import MirrorSettings  # a tenth of a second, which --help need not wait for

        self.name = name
        self.settings = settings or MirrorSettings()
        self._tables: dict[str, pd.DataFrame] = {}
        self._damaged: dict[str, dict[str, int]] = {}  # by split and shard: how many of its photos are left

    @abstractmethod
    def path(self, relative: str) -> Path | None:
        """A metadata file on disk, downloaded first where need be; None when the mirror has none."""

    @abstractmethod
    def shard_names(self, split: str) -> list[str]:
        """The names of a split's shards, in order, as the mirror itself tells them; empty when it has none."""

    @abstractmethod
    def stream(self, split: str, names: list[str]) -> Iterator[Shard]:
        """The shards of these names one after another, each closed when the next is asked for.

        Raises:
            InputError: a shard cannot be had; or is damaged, where `strict`; or too many are (`tolerate`).
        """

    @abstractmethod
    def fingerprint(self, split: str, name: str, earlier: str = "") -> str:
        """What tells a shard's photos from others at the same place; `earlier`, one of before, if it still holds.

        It is found without a download of the shard and without reading a photo: in a folder from the ids and sizes of
        the photos, of a URL from the published md5, which is empty where there is none.
        """

    def absence(self, relative: str) -> str:
        """What the mirror says of a file that it does not give, in brackets; nothing where it only is not there."""
        return ""

    def shard_ids(self, split: str, name: str) -> list[str] | None:
        """The ids of a shard's photos; None where only a download would tell."""
        return None

    def train(self) -> "pd.DataFrame":
        """`id` (str) and `landmark_id` (int64) of every train photo; the same table each time, so leave it as it is.

        Raises InputError for a malformed file.
        """
        return self._table("train")

    def ids(self, split: str) -> list[str]:
        """The ids of a split's photos, in the order of its CSV."""
        return self._table(split)["id"].tolist()

    def digest(self, *splits: str) -> str:
        """What tells the photos of these splits from those of another mirror, wherever it is: its tables and shards."""
        parts: list[object] = [self.shard_names(split) for split in splits]
        parts += ["\n".join(self.ids(split)).encode() for split, names in zip(splits, parts, strict=True) if names]
        return digest(*parts, *([self.train()["landmark_id"].to_numpy()] if "train" in splits else []))

    def categories(self) -> dict[int, str]:
        """Landmark ids to category names; empty where the mirror does not tell."""
        path = self.path(CATEGORIES)
        if path is None:
            return {}
        table = self._read(path, ["landmark_id", "category"])
        return dict(zip(table["landmark_id"], table["category"], strict=True))

    def solution(self, task: str) -> Path | None:
        """The solution of "recognition" or "retrieval": the one given, else the published one, where there is one."""
        return Path(self.settings.solution) if self.settings.solution else self.path(SOLUTIONS[task])

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
                first = f"{split}/images_000.tar"
                raise InputError(
                    f"{self.name} is no mirror with {split} photos: it has neither {first}{self.absence(first)} nor a "
                    f"tree {split}/a/b/c/ID.jpg; give a mirror's URL or folder, or make one with `python mirror.py "
                    "import`"
                )

    def tolerate(self, split: str, shard: TarShard) -> None:
        """Pass over the damage of a shard whose other photos are used, unless too many are damaged.

        Raises InputError beyond the setting `max_damaged`, or when no shard of the split has a photo.
        """
        damaged = self._damaged.setdefault(split, {})
        damaged[shard.name] = len(shard.ids)
        count = len(self.shard_names(split))
        if len(damaged) > max(1, self.settings.max_damaged * count):
            raise InputError(
                f"{len(damaged)} of {count} {split} shards of {self.name} are damaged, the last is {shard.name} "
                f"({shard.damage}): copy them to the mirror again, or give more than --max-damaged "
                f"{self.settings.max_damaged:g}"
            )
        if len(damaged) == count and not any(damaged.values()):
            raise InputError(
                f"no {split} shard of {self.name} has a whole photo ({shard.name} is {shard.damage}): copy it to the "
                "mirror again"
            )

    def _table(self, split: str) -> "pd.DataFrame":
        """A split's CSV, read once: train.csv of the public mirror takes 5 seconds."""
        if split not in self._tables:
            relative = f"metadata/{split}.csv"
            path = self.path(relative)
            if path is None:
                raise InputError(
                    f"{self.name} has no {relative}, which lists its {split} photos{self.absence(relative)}; "
                    "check the mirror"
                )
            table = self._read(path, ["id", "landmark_id"] if split == "train" else ["id"])
            if table.empty:
                raise InputError(f"{path} lists no photo")
            self._tables[split] = table
        return self._tables[split]

    def _read(self, path: Path, columns: list[str]) -> "pd.DataFrame":
        return read_table(path, columns)
