"""Photos side by side; that identify.py draws the right ones is in tests/test_identify.py."""

import numpy as np
from conftest import extract, jpeg, make_mirror

from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.pictures import GAP, SIDE, photos_of, side_by_side


def test_photos_that_an_extracted_tree_has_no_more_are_left_out(tmp_path):
    out = make_mirror(tmp_path / "mirror")
    for path in sorted((out / "train").glob("*.tar")):
        extract(path, out / "train")
        path.unlink()
    mirror = open_mirror(str(out), tmp_path)
    first, second, third = mirror.train()["id"].tolist()[:3]
    (gone,) = out.rglob(f"{first}.jpg")
    gone.unlink()
    found = photos_of(mirror, "train", {first: "images_000", second: "images_000", third: "images_999"})
    (there,) = out.rglob(f"{second}.jpg")
    assert found == {second: there.read_bytes()}


def test_an_empty_place_has_a_frame_and_words_of_any_script(tmp_path):
    picture = side_by_side([(jpeg(1, (400, 300)), "a"), (None, "0.5 北京 " * 20)])
    assert picture.size == (2 * SIDE + GAP, picture.height)
    pixels = np.asarray(picture)
    left, right = pixels[:, :SIDE], pixels[:, SIDE + GAP :]
    assert left[SIDE // 2].std() > 5
    assert (right[1 : SIDE - 1, 1 : SIDE - 1] == 255).all() and (right[0] != 255).all()  # a frame of one pixel
    assert (right[SIDE:] != 255).any()
