"""One folder to upload to Kaggle: the scripts, and all that they need in a kernel without internet.

    python package_for_kaggle.py OUT [--python 3.12] [--weights NAME|PATH ...]

OUT holds the scripts as they are here, `wheels/` with every package of requirements.lock for the kernel's Python, and
`weights/` where they are asked for. Upload it as a dataset; `notebooks/kaggle_recognition.ipynb` says what to do then.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

from landmarks.running import command
from landmarks.running.command import InputError, check_stop
from landmarks.running.said import size_of
from landmarks.running.settings import ROOT, ModelSettings
from landmarks.running.version import NOTE, version

PYTHONS = ("3.10", "3.11", "3.12", "3.13")  # that requirements.lock is for
KERNEL = "3.12"  # Python of Kaggle's image since https://github.com/Kaggle/docker-python/pull/1496
GLIBC = 28  # 2.28 is the newest that a wheel of the lock asks for; the image is made from Colab's, which has 2.35
SCRIPTS = (
    "*.py", "landmarks/**/*.py", "landmarks/**/*.toml", "landmarks/report/*.html", "landmarks/report/*.css",
    "templates/*.html", "recipes/*.toml", "requirements.txt", "LICENSE",
)  # fmt: skip


def main() -> None:
    parser = command.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument(
        "--python", choices=PYTHONS, default=KERNEL, help=f"of the kernel: `python --version` there (default {KERNEL})"
    )
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="NAME|PATH",
        help="a backbone, whose ImageNet weights are taken; a file of weights; or a work folder or another one",
    )  # fmt: skip
    arguments = parser.parse_args()
    package(arguments.out, arguments.python, arguments.weights)


def package(out: Path, python: str, weights: list[str]) -> None:
    """Make the folder, which appears when it is whole, and say how large each part of it is.

    Raises InputError if it is there already, or a part cannot be had.
    """
    if out.exists():
        raise InputError(f"{out} is there already: give a folder to make")
    part = out.with_name(f"part-{out.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        copy_scripts(part)
        for one in weights:  # a wrong name is known before the long download
            add_weights(one, part / "weights")
        download_wheels((ROOT / "requirements.lock").read_text(), python, part / "wheels")
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for folder in (out / "wheels", out / "weights", out):
        if sizes := [path.stat().st_size for path in folder.rglob("*") if path.is_file()]:
            print(f"{folder}: {len(sizes)} files, {size_of(sum(sizes))}{' in all' * (folder == out)}")
    print(f"upload {out} as a dataset, and attach it to notebooks/kaggle_recognition.ipynb")


def copy_scripts(out: Path) -> None:
    for path in (path for pattern in SCRIPTS for path in ROOT.glob(pattern)):
        copy = out / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (out / NOTE).write_text(f"{version()}\n")


def add_weights(weights: str, out: Path) -> None:
    """Copy a file or a folder, or write the ImageNet weights of the backbone of that name, NAME.weights.h5.

    Raises InputError if it is neither, or its weights cannot be had.
    """
    out.mkdir(exist_ok=True)
    path = Path(weights)
    if path.is_dir():
        shutil.copytree(path, out / path.resolve().name)
    elif path.is_file():
        shutil.copyfile(path, out / path.name)
    else:
        command.prepare_backend()
        from landmarks.networks.backbones import build_backbone, find_backbone

        find_backbone(weights)
        base, _ = build_backbone(ModelSettings(backbone=weights))
        base.save_weights(out / f"{weights}.weights.h5")
    check_stop()


def download_wheels(lock: str, python: str, out: Path) -> None:
    """Download the wheels of a lock file's packages for a Python on 64-bit Linux; pip compares their hashes.

    Raises InputError if one cannot be had.
    """
    out.mkdir()
    pinned = out / "pinned.txt"
    pinned.write_text("\n".join(pins(lock, python)))
    # Dependencies are in the lock; pip would look for those of the Python that it runs on.
    platforms = ["manylinux2014_x86_64", *(f"manylinux_2_{glibc}_x86_64" for glibc in range(17, GLIBC + 1))]
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
            "--implementation=cp", f"--python-version={python}", *(f"--platform={one}" for one in platforms),
            f"--requirement={pinned}", f"--dest={out}",
        ]
    )  # fmt: skip
    check_stop()
    if done.returncode:
        raise InputError("pip could not download the wheels, as it says above; run the same command again")
    pinned.unlink()


def pins(lock: str, python: str) -> list[str]:
    """The lines of a lock file that a Python on 64-bit Linux needs, with their hashes and without markers."""
    there = {
        "python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "os_name": "posix", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": "x86_64",
    }  # fmt: skip
    found = []
    for line in lock.replace("\\\n", " ").splitlines():
        if not line.lstrip().startswith("#") and (said := line.partition("--hash")[0].strip()):
            one = Requirement(said)
            if not one.marker or one.marker.evaluate(there):
                found.append(" ".join([f"{one.name}{one.specifier}", *re.findall(r"--hash=\S+", line)]))
    return found


if __name__ == "__main__":
    command.run(main)
