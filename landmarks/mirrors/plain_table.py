"""The ids and landmark ids of a plain CSV, by arrays of the bytes of many lines: train.csv has 4.1 million."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from landmarks.mirrors.shards import LONGEST_ID
from landmarks.running.threads import cores, in_threads

BLOCK = 2**21  # bytes of lines that are looked through together
LONGEST_CELL, LONGEST_LINE = 2**16, 2**18  # bytes
NUMERALS = 18  # of a landmark id: as many as surely fit an int64
COMMA, NEWLINE, QUOTE = b',\n"'
WORD = np.array([chr(byte).isalnum() or chr(byte) == "_" for byte in range(128)] + [False] * 128)
WORD_OR_DASH = WORD | (np.arange(256) == ord("-"))
MIXER = 0x9E3779B97F4A7C15  # odd, and of bits as at random


class NotPlain(Exception):
    """Somebody else has to read the file: it has a fault, or a freedom of CSV that is not known here."""


def read_plain(path: Path, columns: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns, `id` as objects and `landmark_id`, and numbers (rows,) uint64 that are alike for ids that are.

    A plain file is what mirrors have: lines of as many cells as the first, of which those that are not wanted may be in
    quotes, ids that may be a photo's and landmark ids that are whole numbers.

    Raises:
        NotPlain: the file is not; whether it is a CSV at all is not said.
    """
    with open(path, "rb") as file:
        header = file.readline(LONGEST_LINE).removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b",")
        places = {name: header.index(name.encode()) for name in columns if header.count(name.encode()) == 1}
        if len(places) < len(columns) or re.search(rb"[\"\r\0\x80-\xff]", b",".join(header)):
            raise NotPlain
        read = partial(_columns, places=places, count=len(header))
        parts = zip(*in_threads(read, _blocks(file), ahead=cores()), strict=True)
    ids, landmarks, hashes = map(np.concatenate, parts)
    found = {"id": ids, "landmark_id": landmarks}
    return {name: found[name] for name in columns}, hashes


def _columns(block: bytes, places: dict[str, int], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ids, landmark ids and hashes of the ids of some lines, of which each has so many cells."""
    letters, begin, end = _cells(block, count)
    ids, landmarks, hashes = np.empty(0, object), np.empty(0, np.int64), np.empty(0, np.uint64)
    if (place := places.get("id")) is not None:
        matrix = _gather(letters, begin[:, place], end[:, place], 3, LONGEST_ID)
        if not (WORD[matrix[:, :3]].all() and WORD_OR_DASH[matrix[:, 3:]].all(where=matrix[:, 3:] > 0)):
            raise NotPlain
        ids, hashes = _texts(matrix), _hashes(matrix)
    if (place := places.get("landmark_id")) is not None:
        landmarks = _numbers(letters, begin[:, place], end[:, place])
    return ids, landmarks, hashes


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """What is left of a file, in pieces of whole lines; the last line may have no end of its own."""
    block = b"\n"
    while block:
        block = file.read(BLOCK)
        rest = file.readline(LONGEST_LINE + 1)
        if len(rest) > LONGEST_LINE:
            raise NotPlain
        block += rest
        yield block if block.endswith(b"\n") else block + b"\n"


def _cells(block: bytes, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of lines, and where the cells of each begin and end in them: (rows, count) twice."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    try:
        if b"\r" in block or b"\0" in block or not (block.isascii() or block.decode()):
            raise NotPlain
    except UnicodeDecodeError as error:
        raise NotPlain from error
    letters = np.frombuffer(block + bytes(LONGEST_ID), np.uint8)  # so that windows of that length fit
    end = np.flatnonzero((letters == COMMA) | (letters == NEWLINE))
    newline = end[letters[end] == NEWLINE]
    if 0 in newline or (letters[newline - 1] == NEWLINE).any():  # 10 times as fast as to look for two in the bytes
        return _cells(re.sub(rb"\n+", b"\n", block).lstrip(b"\n"), count)
    if b'"' in block:
        end = end[~_quoted(letters, end)]
    begin = np.concatenate([[0], end[:-1] + 1]) if len(end) else end
    ends_line = letters[end] == NEWLINE
    whole = len(end) % count == 0 and ends_line[count - 1 :: count].all()
    if not whole or ends_line.sum() * count > len(end) or (end - begin).max(initial=0) > LONGEST_CELL:
        raise NotPlain
    return letters, begin.reshape(-1, count), end.reshape(-1, count)


def _quoted(letters: np.ndarray, separators: np.ndarray) -> np.ndarray:
    """Which of these commas and newlines are within quotes: those of a whole cell, without a newline in it."""
    quotes = np.flatnonzero(letters == QUOTE)
    before, after = letters[quotes[::2] - 1], letters[quotes[1::2] + 1]  # before the first is the zero at the end
    if len(quotes) % 2 or not (np.isin(before, [COMMA, NEWLINE, 0]) & np.isin(after, [COMMA, NEWLINE])).all():
        raise NotPlain
    first, last = np.searchsorted(separators, quotes).reshape(-1, 2).T
    steps = np.zeros(len(separators) + 1, np.int8)
    steps[first] += 1  # no two begin at the same separator, nor end, since there is one between them
    steps[last] -= 1
    within = np.cumsum(steps[:-1], dtype=np.int8) > 0
    if (letters[separators[within]] == NEWLINE).any():
        raise NotPlain
    return within


def _gather(letters: np.ndarray, begin: np.ndarray, end: np.ndarray, least: int, most: int) -> np.ndarray:
    """The bytes of cells as (cells, longest) uint8, zero after the end of each."""
    length = end - begin
    longest = int(length.max(initial=least))
    if longest > most or length.min(initial=longest) < least:
        raise NotPlain
    matrix = sliding_window_view(letters, longest)[begin]
    if length.min(initial=longest) < longest:
        matrix[np.arange(longest) >= length[:, None]] = 0
    return matrix


def _hashes(matrix: np.ndarray) -> np.ndarray:
    """Of bytes (rows, length), whatever zeros are at the end of each row: (rows,) uint64."""
    words = np.pad(matrix, [(0, 0), (0, -matrix.shape[1] % 8)]).view(np.uint64)
    factors = [pow(MIXER, place + 1, 2**64) for place in range(words.shape[1])]
    return (words * np.array(factors, np.uint64)).sum(axis=1, dtype=np.uint64)


def _texts(matrix: np.ndarray) -> np.ndarray:
    """Bytes (rows, length) as str, (rows,) objects, without the zeros at their ends; half the time of numpy's way."""
    lines = np.pad(matrix, [(0, 0), (0, 1)], constant_values=NEWLINE).tobytes()
    return np.array(lines.replace(b"\0", b"").decode("ascii").split("\n")[:-1], object)


def _numbers(letters: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The whole numbers, int64, that cells are."""
    digits = _gather(letters, begin, end, 1, NUMERALS)
    inside = digits > 0
    digits -= ord("0")
    if (digits > 9).any(where=inside):
        raise NotPlain
    numbers = np.zeros(len(digits), np.int64)
    for place in range(digits.shape[1]):
        numbers = np.where(inside[:, place], numbers * 10 + digits[:, place], numbers)
    return numbers
