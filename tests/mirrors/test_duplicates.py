import io
from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from landmarks.mirrors.duplicates import COPY, NEAR_DUPLICATE, groups, perceptual_hash
from landmarks.sample.photos import landmark_view


def hash_of(image: Image.Image, **options) -> np.uint64:
    encoded = io.BytesIO()
    image.save(encoded, options.pop("format", "JPEG"), **options)
    return perceptual_hash(Image.open(io.BytesIO(encoded.getvalue())), encoded.getvalue())


def distance(one: np.uint64, other: np.uint64) -> int:
    return int(np.bitwise_count(one ^ other))


def photo(landmark: int) -> Image.Image:
    return landmark_view(0, landmark, 0)[0]


def sets(group: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(group == one).tolist()) for one in set(group.tolist())}


def test_a_copy_in_another_size_or_format_has_nearly_the_same_hash_and_another_photo_has_not():
    wholes = [hash_of(photo(landmark), quality=95) for landmark in range(5)]
    for landmark, whole in enumerate(wholes):
        original = photo(landmark)
        copies = [
            hash_of(original, quality=60),
            hash_of(original.resize((original.width // 2, original.height // 2), Image.Resampling.LANCZOS)),
            hash_of(original, format="PNG"),
        ]
        assert max(distance(whole, copy) for copy in copies) <= COPY
        assert distance(whole, hash_of(ImageEnhance.Brightness(original).enhance(1.2))) <= NEAR_DUPLICATE
    assert min(distance(one, other) for one, other in combinations(wholes, 2)) > NEAR_DUPLICATE


def test_the_hash_is_that_of_imagehash():
    noise = [np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8) for seed in range(2)]
    hashes = [perceptual_hash(Image.fromarray(pixels), b"").tobytes().hex() for pixels in noise]
    assert hashes == ["905df6a4c35db14a", "b7382d32c2aa94f9"]  # str(imagehash.phash(...)) of version 4.3.2


def test_photos_without_any_structure_are_alike_only_in_the_same_bytes():
    red, blue = (hash_of(Image.new("RGB", (64, 48), colour)) for colour in ("red", "blue"))
    assert distance(red, blue) > NEAR_DUPLICATE
    assert red == hash_of(Image.new("RGB", (64, 48), "red"))


@given(
    bits=st.lists(
        st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=6), st.integers(0, 1)), max_size=30
    ),
    most=st.integers(0, 8),
)
@settings(deadline=None)
def test_groups_are_those_that_comparing_all_with_all_finds(bits, most):
    bases = np.random.default_rng(0).integers(0, 2**64, 4, np.uint64)
    hashes = np.array([int(bases[base]) ^ sum(1 << bit for bit in flips) for base, flips, _ in bits], np.uint64)
    within = np.array([part for *_, part in bits], int)
    linked = (np.bitwise_count(hashes[:, None] ^ hashes) <= most) & (within[:, None] == within)
    for _ in bits:
        linked = linked @ linked
    assert sets(groups(hashes, most, within)) == {frozenset(np.flatnonzero(row).tolist()) for row in linked}


def test_many_hashes_take_time_and_memory_in_proportion():
    """By all pairs 200,000 would take minutes; so many that are all the same are no pairs to compare."""
    hashes = np.random.default_rng(0).integers(0, 2**64, 200_000, np.uint64)
    hashes[1000:2000] = hashes[:1000] ^ np.uint64(1 << 40)
    found = groups(hashes, COPY, np.zeros(len(hashes), int))
    assert (found[1000:2000] == found[:1000]).all()
    assert len(set(found.tolist())) == len(hashes) - 1000
    same = groups(np.full(200_000, 7, np.uint64), NEAR_DUPLICATE, np.zeros(200_000, int))
    assert len(set(same.tolist())) == 1


def test_a_chain_of_steps_is_one_group():
    chain = np.cumsum(np.append(0, 2 ** np.arange(63)), dtype=np.uint64)  # each has one bit more than the last
    order = np.random.default_rng(0).permutation(len(chain))
    assert len(set(groups(chain[order], 1, np.zeros(len(chain), int)).tolist())) == 1
