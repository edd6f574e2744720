"""What runs on a node: an actor that holds a job's model, and makes one shard after another into a file."""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from landmarks.mirrors.base import Mirror
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.shards import Shard, TarShard
from landmarks.mirrors.web import MISMATCHES, WebMirror
from landmarks.running import threads
from landmarks.running.command import InputError
from landmarks.running.files import read_rows
from landmarks.running.settings import URLS, MirrorSettings

Job = Callable[[Mirror, Shard, Path, Path], None]  # writes a shard's file at a path; the last is a folder to note in


class Made(NamedTuple):
    """A shard's file, and what was noted while it was made; or what is wrong, which another try would not mend."""

    error: str = ""
    file: np.ndarray = np.empty(0, np.uint8)  # its bytes, which Ray hands over without a copy
    photos: int = 0
    damage: str = ""  # of a tar whose other photos were used
    skipped: list[tuple[str, ...]] = []  # rows of skipped.csv
    mismatches: list[tuple[str, ...]] = []  # shard, published md5 and the one found


class Worker:
    """An actor. It has a folder of its own among the system's temporary files, which is empty between shards.

    Args:
        source: a mirror's URL, or its folder, which each node has to see under the same path.
        settings: of the mirror.
        work: where the work folder is on the machine that shares the work out, for messages.
        cores: of the node's, how many this actor may use.
    """

    def __init__(self, source: str, settings: dict[str, Any], split: str, work: str, cores: int):
        self.source, self.settings, self.split, self.work = source, MirrorSettings(**settings), split, work
        # By user, since the system's temporary files are everybody's.
        self.folder, self._held = _own_folder(Path(tempfile.gettempdir()) / f"landmarks-cluster-{os.getuid()}")
        threads.share = cores
        os.chdir(self.folder)  # Ray's own may be unpacked anew by another node of this machine
        self._device = threading.Lock()
        self._job: Job | None = None
        self._in_folder: FolderMirror | None = None

    def make(self, name: str, job: list[Any]) -> Made:
        """Make a shard's file. While one is downloaded, or sent, the device works on another.

        Args:
            job: a list with the reference to what opens the job, the same each time.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            with self._device:
                if self._job is None:
                    import ray

                    self._job = ray.get(job[0])()
                does = self._job
            return self._make(name, does, folder)
        except InputError as error:  # which is no failure of the node: the same would happen on another
            return Made(str(error).replace(str(folder / "work"), self.work))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _make(self, name: str, job: Job, folder: Path) -> Made:
        path, work = folder / f"{name}.npz", folder / "work"
        work.mkdir()
        photos, damage = 0, ""
        mirror = self._open(folder / "mirror")
        for shard in mirror.stream(self.split, [name]):
            with self._device:
                job(mirror, shard, path, work)
            photos, damage = len(shard.ids), shard.damage if isinstance(shard, TarShard) else ""
        skipped, mismatches = read_rows(work / "skipped.csv")[1:], read_rows(folder / "mirror" / MISMATCHES)[1:]
        return Made("", np.fromfile(path, np.uint8), photos, damage, skipped, mismatches)

    def _open(self, cache: Path) -> Mirror:
        """The mirror; one at a URL anew for each shard, whose downloads have a place of their own."""
        if self.source.startswith(URLS):
            return WebMirror(self.source, cache, self.settings)
        if not Path(self.source).is_dir():
            raise InputError(
                f"node {os.uname().nodename} does not see the mirror's folder {self.source}: put it where all nodes "
                "have it under this path, or give a mirror at a URL"
            )
        if self._in_folder is None:  # an extracted tree's is long in finding out what it has
            self._in_folder = FolderMirror(Path(self.source), self.settings)
        return self._in_folder


def _own_folder(root: Path) -> tuple[Path, FileLock]:
    """A new folder, which is this process' while it lives; those of processes that were killed go."""
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        for lock in root.glob("*/.lock"):
            try:
                with FileLock(lock, blocking=False):
                    shutil.rmtree(lock.parent, ignore_errors=True)
            except Timeout:
                continue
        folder = Path(tempfile.mkdtemp(dir=root))
        held = FileLock(folder / ".lock", thread_local=False)
        held.acquire()
    return folder, held
