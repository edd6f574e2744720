"""What distances of perceptual hashes tell copies from other photos, and how long it takes to find them.

    python benchmarks/duplicates.py MIRROR [--photos 300]

How many pairs of all photos of a mirror in a folder are within so many bits; which part of the photos is within so
many bits of a copy that was changed; and the time and the peak of memory that `groups` takes for random hashes, a tenth
of which are a bit away from another: copies among all of them, and near-duplicates within landmarks of 30.
"""

import argparse
import io
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project; there `duplicates` is not this file

from landmarks.mirrors import images
from landmarks.mirrors.base import SPLITS
from landmarks.mirrors.duplicates import COPY, NEAR_DUPLICATE, groups, perceptual_hash
from landmarks.mirrors.folder import FolderMirror

DISTANCES = (0, 2, 4, 6, 8, 10, 12)


def resized(image: Image.Image, sides: tuple[int, int]) -> Image.Image:
    return image.resize(sides, Image.Resampling.LANCZOS)


def cut(image: Image.Image, part: float) -> Image.Image:
    width, height = image.size
    return image.crop(
        (round(part * width), round(part * height), round((1 - part) * width), round((1 - part) * height))
    )


CHANGES = {
    "JPEG, quality 75": lambda image: (image, 75),
    "JPEG, quality 30": lambda image: (image, 30),
    "half the size": lambda image: (resized(image, (image.width // 2, image.height // 2)), 80),
    "100 px wide": lambda image: (resized(image, (100, max(1, 100 * image.height // image.width))), 80),
    "a square": lambda image: (resized(image, (256, 256)), 90),
    "1.3 times as bright": lambda image: (ImageEnhance.Brightness(image).enhance(1.3), 90),
    "cut by 1 % a side": lambda image: (cut(image, 0.01), 90),
    "cut by 2 % a side": lambda image: (cut(image, 0.02), 90),
    "cut by 5 % a side": lambda image: (cut(image, 0.05), 90),
}


def hash_of(data: bytes) -> np.uint64:
    return perceptual_hash(images.open_photo(data, 64), data)


def changed(data: bytes, change) -> bytes:
    image, quality = change(images.open_photo(data, 4096))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mirror", type=Path)
    parser.add_argument("--photos", type=int, default=300)
    arguments = parser.parse_args()
    mirror = FolderMirror(arguments.mirror)
    photos = [
        shard.read(identity)
        for split in SPLITS
        for shard in mirror.stream(split, mirror.shard_names(split))
        for identity in shard.ids
    ]
    hashes = np.array([hash_of(data) for data in photos])
    apart = np.concatenate([np.bitwise_count(one ^ hashes[row + 1 :]) for row, one in enumerate(hashes)])
    print(f"{len(photos):,} photos, {len(apart):,} pairs")
    print(f"{'within':28}", *(f"{most:8}" for most in DISTANCES))
    print(f"{'pairs':28}", *(f"{(apart <= most).sum():8,}" for most in DISTANCES))
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(photos), min(arguments.photos, len(photos)), replace=False)
    for name, change in CHANGES.items():
        apart = np.array([np.bitwise_count(hashes[row] ^ hash_of(changed(photos[row], change))) for row in drawn])
        print(f"{name:28}", *(f"{(apart <= most).mean():8.2f}" for most in DISTANCES))
    for number in (10_000, 100_000, 1_000_000):
        hashes = rng.integers(0, 2**64, number, np.uint64)
        hashes[: number // 10] = hashes[-(number // 10) :] ^ np.uint64(1 << 20)
        for what, distance, within in (
            ("copies", COPY, np.zeros(number, int)),
            ("near-duplicates", NEAR_DUPLICATE, np.arange(number) // 30),
        ):
            tracemalloc.start()
            began = time.perf_counter()
            groups(hashes, distance, within)
            seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
            tracemalloc.stop()
            print(f"{what} of {number:,}: {seconds:.2f} s, {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
