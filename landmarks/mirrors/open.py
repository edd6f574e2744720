"""Any mirror by its name: at a URL, in a folder, or the built-in sample, made on the spot."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from urllib.request import url2pathname

from landmarks.mirrors.base import Mirror
from landmarks.mirrors.build import build_mirror
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.web import WebMirror
from landmarks.running.command import InputError
from landmarks.running.locks import held, require_idle
from landmarks.running.settings import URLS, MirrorSettings
from landmarks.sample import photos


def open_mirror(
    source: str, cache: Path | None = None, seed: int = 0, settings: MirrorSettings | None = None
) -> Mirror:
    """Open a mirror at a URL, in a folder, or `sample`, the built-in one, made in `cache` if it is not there yet.

    Args:
        cache: the folder that downloads and the sample go to; a folder of this process' own when None.
        seed: of the sample.

    Raises:
        InputError: there is no such folder.
    """
    require_place(source)
    source = _without_scheme(source)
    if cache is None:
        cache = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    if source.startswith(URLS):
        return WebMirror(source, cache, settings)
    if source == "sample":
        folder = cache / f"sample-{seed}"
        if not folder.exists():
            make_sample(folder, seed)
        return FolderMirror(folder, settings)
    require_idle(Path(source))
    return FolderMirror(Path(source), settings)


def require_place(source: str) -> None:
    """Raise InputError unless `source` is `sample`, a URL, or a folder that is there."""
    if source != "sample" and not source.startswith(URLS) and not Path(_without_scheme(source)).is_dir():
        raise InputError(
            f"mirror {source!r} is no folder; give `sample`, a URL with {', '.join(URLS[:-1])} or {URLS[-1]}, or a "
            "folder, such as `python mirror.py shrink` and `import` make"
        )


def _without_scheme(source: str) -> str:
    return url2pathname(source.removeprefix("file://")) if source.startswith("file://") else source


def make_sample(
    out: Path, seed: int = 0, landmarks: int = 24, views: tuple[int, int] = (20, 30), others: int = 150
) -> None:
    """Render a sample into the folder `out`, which appears when it is whole; the arguments are `photos.listing`'s.

    Raises:
        InputError: `out` is there already or being made, or the seed is negative.
        Stopped: a signal asked the process to end.
    """
    listed, categories = photos.listing(seed, landmarks, views, others)
    part = out.with_name(f"part-{out.name}")
    with held(part):  # a place that cannot be written to, or that another process fills, is known before the work
        try:
            if out.exists():
                raise InputError(f"{out} is there already: give the sample a folder of its own")
            shutil.rmtree(part / "new", ignore_errors=True)
            written = build_mirror(listed, photos.render(listed["url"].tolist()).__getitem__, part / "new", categories)
            os.replace(part / "new", out)
            print(f"{out.name}: {len(written):,} photos written")
        finally:
            shutil.rmtree(part, ignore_errors=True)
