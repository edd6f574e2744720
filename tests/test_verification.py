import sys
from io import BytesIO

import numpy as np
import pytest
import scripts
from conftest import ROOT, jpeg
from PIL import Image

import verification
from landmarks.local_features.drawing import CAPTION, GAP
from landmarks.running.command import InputError


def size(path):
    with Image.open(path) as picture:
        return picture.size


# On a mirror


def texture(seed: int, turn: float = 0, shrink: float = 1) -> bytes:
    """A photo of 320 x 240 px of coloured blobs, other ones for each seed, turned (degrees) and made smaller."""
    noise = np.random.default_rng(int(seed)).integers(0, 256, (20, 27, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
    cos, sin = np.cos(np.radians(turn)) / shrink, np.sin(np.radians(turn)) / shrink
    encoded = BytesIO()
    image.transform(
        image.size, Image.Transform.AFFINE, (cos, sin, 20, -sin, cos, 10), Image.Resampling.BICUBIC
    ).save(encoded, "JPEG", quality=90)  # fmt: skip
    return encoded.getvalue()


# The commands


def script(*arguments):
    return scripts.run(ROOT / "verification.py", *arguments)


def test_matching_two_files_needs_no_work_folder(tmp_path):
    """Without one it is DELF on ImageNet weights: its points are 16 pixels apart, but there are seven scales."""
    for name, photo in (("a", texture(1)), ("b", texture(1, 10, 0.8)), ("other", texture(2))):
        (tmp_path / f"{name}.jpg").write_bytes(photo)
    counts = []
    for other in ("b.jpg", "other.jpg"):
        done = script("match", tmp_path / "a.jpg", tmp_path / other)
        assert done.returncode == 0, done.stderr
        counts.append(int(done.stdout.removesuffix(" inliers\n")))
    assert counts[0] > 1.5 * counts[1]  # blobs on a grid: 234 and 122
    assert len(list(tmp_path.iterdir())) == 3


def test_drawing_the_matches_of_two_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(texture(1))
    (tmp_path / "b.jpg").write_bytes(texture(1, 10, 0.8))
    options = ("--out", tmp_path / "new/out.png", "--size", 200, "--extractor", "sift")
    done = script("match", tmp_path / "a.jpg", tmp_path / "b.jpg", *options)
    assert done.returncode == 0, done.stderr
    count, word = done.stdout.split()
    assert int(count) > 30 and word == "inliers"
    assert size(tmp_path / "new/out.png") == (400 + GAP, 150 + CAPTION)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"a": "gone.jpg"}, "photo .*gone.jpg cannot be read"),
        ({"a": "/dev/null"}, "photo /dev/null cannot be read: not a regular file"),
        ({"b": "text.jpg"}, "photo .*text.jpg cannot be read: not a photo"),
        ({"b": "thin.jpg"}, "photo .*thin.jpg is too small"),
        ({"--out": "out.xyz"}, "out.xyz cannot be written: unknown file extension.*matches.png"),
        ({"--size": 0}, "--size 0 --points 1000: give at least 32 pixels and 2 points"),
        ({"--points": 1}, "give at least"),
        ({"--extractor": "delf"}, "delf needs the folder of its model, not None"),
        ({"--extractor": "delf", "--model": "gone"}, "delf needs the folder of its model, not gone"),
        ({"--extractor": "orb"}, "no extractor 'orb': there are delf"),
    ],
)
def test_what_match_cannot_use_is_one_clear_line(tmp_path, monkeypatch, changed, message):
    (tmp_path / "a.jpg").write_bytes(texture(1))
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "thin.jpg").write_bytes(jpeg(1, (200, 20)))
    given = {"a": "a.jpg", "b": "a.jpg", "--out": "out.png", "--extractor": "sift", **changed}
    options = [part for name, value in given.items() if name.startswith("--") for part in (name, str(value))]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["verification.py", "match", given["a"], given["b"], *options])
    with pytest.raises(InputError, match=message):
        verification.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "text.jpg", "thin.jpg"]


def test_a_folder_without_a_model_is_one_clear_line(tmp_path):
    done = script("calibrate", tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: there is no trained model") and "run recognition.py --work" in line
