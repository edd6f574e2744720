"""Arrays and weights: claims of terabytes, packed members, pickles that would run or fill the memory."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strangers import hostile, mutated, npy, npz

from landmarks.local_features import kept
from landmarks.neighbours import gallery
from landmarks.networks.torch_file import read_tensors
from landmarks.running.answer_settings import RecognitionSettings, VerificationSettings
from landmarks.running.command import InputError
from landmarks.running.features_file import is_whole, load_features, made_from, outline
from landmarks.running.settings import RunSettings


def npy_of(text: str, data: bytes = bytes(64), version: tuple[int, int] = (1, 0)) -> bytes:
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text.encode("latin1") + data


def described(descr: str, shape: str) -> bytes:
    return npy_of(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n")


WHOLE = {
    "ids.npy": npy(np.array(["abc1", "abc2"])),
    "embeddings.npy": npy(np.eye(2, 3, dtype="float16")),
    "landmark.npy": npy(np.array([5, 6])),
    "made_from.npy": npy(np.array("made from this")),
}
LOCAL = npz([("abc1.npy", npy(np.ones((3, 12), np.uint8))), ("abc2.npy", npy(np.ones((0, 8), np.uint8)))])
ARRAYS = [
    *WHOLE.values(),
    *(described(descr, shape) for descr in ("<f2", "<U4", "|O", "<U200000000", "<M8[s]", "|V0", "|u1")
      for shape in ("(2,)", "(2, 3)", "(10**12, 3)", "(1000000000000, 3)", "(True, 9)", "(-1,)", "(0, 2000000000)")),
    npy_of("{'descr': (((", version=(2, 0)), npy_of("{'descr': '''"), npy_of("  1\n 2\n"), npy_of("(" * 9000),
    npy_of("-" * 9000 + "1"), npy_of("{" * 90), b"", b"\x93NUMPY", b"\x80\x04N.", b"PK\x03\x04",
]  # fmt: skip
MEMBERS = [*WHOLE, "abc1.npy", "../../owned.npy", "/owned", "a\0b.npy", "\u202eypn", "IDS.npy", "top_score.npy", "x/"]
COMPRESSIONS = [zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@st.composite
def npzs(draw) -> bytes:
    members = dict(draw(st.lists(st.tuples(st.sampled_from(MEMBERS), st.sampled_from(ARRAYS)), max_size=3)))
    return npz({**draw(st.sampled_from([WHOLE, {}])), **members}.items(), draw(st.sampled_from(COMPRESSIONS)))


def read_local(path: Path) -> list:
    there = kept.KeptFeatures([path])
    return [there[identity] for identity in there]


@hostile
@given(npzs() | mutated([npz(WHOLE.items()), LOCAL, npz(WHOLE.items(), zipfile.ZIP_DEFLATED)]))
def test_arrays(read_within_bounds, data):
    for reader in (load_features, outline, read_local):
        read_within_bounds(reader, data, "x.npz", ValueError, OSError, InputError)
    for reader in (is_whole, made_from, lambda path: kept._whole_ids([path])):
        read_within_bounds(reader, data, "x.npz")


GALLERY = {
    "files.npy": npy(np.array(["images_000.npz"])),
    "landmark.npy": npy(np.array([5, 6])),
    "weight.npy": npy(np.array(0.5)),
    "calibrated.npy": npy(np.array(True)),
    "made_from.npy": npy(np.array("made from this")),
}


def read_gallery(path: Path) -> gallery.Gallery:
    return gallery.opened(RunSettings(work=path.parent), [], RecognitionSettings(), VerificationSettings())


@hostile
@given(
    mutated([npz(GALLERY.items())])
    | st.dictionaries(st.sampled_from([*GALLERY]), st.sampled_from(ARRAYS), max_size=3).map(
        lambda spoilt: npz({**GALLERY, **spoilt}.items())
    )
)
def test_a_gallery(read_within_bounds, data):
    assert read_within_bounds(read_gallery, data, "gallery.npz", InputError) is None  # no features are there


BOMBS = [("ids.npy", npy(np.array(["a"] * 10**7))), ("embeddings.npy", npy(np.zeros((10**7, 1), "float16")))]
FAULTY = [
    npy_of("{'descr': '''"),
    npy_of("  1\n 2\n"),
    described("<U4", "(1000000000000,)"),
    described("|u1", "(True,)"),
]


@pytest.mark.parametrize("data", [npz([("ids.npy", one), ("embeddings.npy", one)]) for one in FAULTY])
def test_arrays_that_numpy_chokes_on_are_no_features(read_within_bounds, data):
    for reader in (load_features, outline, read_local):
        assert read_within_bounds(reader, data, "x.npz", ValueError, InputError) is None
    assert not read_within_bounds(is_whole, data, "x.npz")


def test_features_are_not_unpacked(read_within_bounds):
    assert read_within_bounds(load_features, npz(BOMBS, zipfile.ZIP_DEFLATED), "x.npz", ValueError) is None


PICKLES = [b"(lp0\n.", b"\x80\x02}q\0.", b"cos\nsystem\n(S'true'\ntR.", b"ccollections\nOrderedDict\n)R.", b"(I1\nd."]
OPCODES = [bytes([code]) for code in range(256)] + [b"r\xff\xff\xff\x0f", b"p99999999\n", b"\x96" + b"\xff" * 8]


@hostile
@given(mutated(PICKLES) | st.lists(st.sampled_from([*OPCODES, *PICKLES]), max_size=12).map(b"".join))
def test_weights(read_within_bounds, data):
    read_within_bounds(read_tensors, data, "x.pth", InputError)


def test_a_pickle_does_not_say_how_long_the_message_is(read_within_bounds):
    data = b"c" + b"a" * 100_000 + b"\nsystem\n."
    assert read_within_bounds(read_tensors, data, "x.pth", InputError, message_limit=1000) is None


def test_a_pickle_does_not_say_how_much_memory_is_taken(read_within_bounds):
    assert read_within_bounds(read_tensors, b"Nr\xff\xff\xff\x01.", "x.pth", InputError) is None
