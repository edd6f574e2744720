"""A mirror in a folder: tar shards, or extracted trees."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from landmarks.mirrors.base import Mirror
from landmarks.mirrors.shards import DamagedShard, FolderShard, TarShard
from landmarks.mirrors.tables import read_table
from landmarks.running.command import InputError
from landmarks.running.settings import MirrorSettings

PHOTOS_PER_VIRTUAL_SHARD = 8192  # as many as a shard of the public mirror holds
SHARD_NAME = re.compile(r"images_\d{3,}")


class FolderMirror(Mirror):
    """A mirror in a folder: its shards are read in place and never deleted.

    A split may be tar shards or an extracted tree `SPLIT/a/b/c/ID.jpg`, which is grouped into virtual shards; the CSVs
    may lie in `metadata/` or, as in a Kaggle competition's input folder, beside the splits.
    """

    def __init__(self, folder: Path, settings: MirrorSettings | None = None):
        super().__init__(str(folder), settings)
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

        For 500 tars of 8,192 photos that would take two minutes. The published md5 comes last, where there is one: it
        tells of the same shard at a URL.
        """
        path, published = self.folder / split / f"{name}.tar", self.published_md5(split, name) or ""
        stamp = f"{path.stat().st_size} {path.stat().st_mtime_ns}" if path.exists() else "tree"
        if (stamp != "tree" and earlier.startswith(f"{stamp} ")) or (published and earlier == published):
            return earlier
        with closing(self._open(split, name)) as shard:
            photos = "\n".join([f"{identity} {shard.size(identity)}" for identity in shard.ids])
        digest = hashlib.md5(photos.encode(), usedforsecurity=False).hexdigest()
        return earlier if digest in earlier.split() else f"{stamp} {digest} {published}".rstrip()

    def shard_ids(self, split: str, name: str) -> list[str]:
        with closing(self._open(split, name)) as shard:
            return shard.ids

    def _open(self, split: str, name: str) -> TarShard | FolderShard:
        path = self.folder / split / f"{name}.tar"
        if path.exists():
            try:
                shard = TarShard(path, salvage=not self.settings.strict)
            except DamagedShard as damage:
                raise DamagedShard(f"damaged shard {damage}; copy it to the mirror again") from damage
            if shard.damage:
                try:
                    self.tolerate(split, shard)
                except InputError:
                    shard.close()
                    raise
            return shard
        begin = int(name.removeprefix("images_")) * PHOTOS_PER_VIRTUAL_SHARD
        ids = self._ids_of_tree(split)[begin : begin + PHOTOS_PER_VIRTUAL_SHARD]
        return FolderShard(self.folder / split, name, ids)

    def _ids_of_tree(self, split: str) -> list[str]:
        """The sorted ids of an extracted tree: from its CSV, the sample submission, or else the tree itself."""
        if split not in self._tree_ids:
            root = self.folder / split
            sample = self.path("sample_submission.csv") if split == "test" else None
            if not root.is_dir() or any(root.glob("images_*.tar")):
                ids = []
            elif self.path(f"metadata/{split}.csv") and any(root.glob("?/?/?/*.jpg")):
                ids = super().ids(split)
            elif sample and any(root.glob("?/?/?/*.jpg")):
                ids = read_table(sample, ["id"])["id"].tolist()
            else:
                ids = [path.stem for path in root.glob("?/?/?/*.jpg")]
            self._tree_ids[split] = sorted(ids)
        return self._tree_ids[split]
