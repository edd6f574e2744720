"""Arrays: files of them that are whole, and take no more memory than they are long."""

import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from landmarks.running.files import require_stored

END_OF_DIRECTORY = 22  # bytes of a zip's last record


@contextmanager
def open_npz(path: Path) -> Iterator[tuple[np.lib.npyio.NpzFile, zipfile.ZipFile]]:
    """The arrays of an .npz that is not compressed, and the zip that holds them.

    Raises FileNotFoundError, and ValueError if the file is damaged, holds objects or states arrays larger than itself.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            file.seek(-END_OF_DIRECTORY, os.SEEK_END)
            stated = int.from_bytes(file.read(END_OF_DIRECTORY)[10:12], "little")
            if stated != len(arrays.zip.filelist):  # a damaged length ends zipfile's reading without a word
                raise ValueError(f"{len(arrays.zip.filelist)} of its {stated} arrays are left")
            require_stored(arrays.zip)
            for member in arrays.zip.filelist:
                with arrays.zip.open(member) as array:
                    if stated_bytes(array) > file.seek(0, os.SEEK_END):
                        raise ValueError(f"{member.filename} would be larger than the file")
            yield arrays, arrays.zip
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and zipfile raise almost anything on a damaged file
        raise ValueError(f"{path} is not a whole features file: {error}") from error


def stated_bytes(array: IO[bytes]) -> int:
    """How long an .npy is by its own header; numpy takes the memory for it before it reads on."""
    np.lib.format.read_magic(array)
    shape, _, dtype = np.lib.format.read_array_header_1_0(array)
    return array.tell() + math.prod(shape) * dtype.itemsize


class SortedIds:
    """Ids as an array, (N,) bytes, in which one is looked up: 16 bytes each, where a set of strings takes 130.

    Sent to another process as it is, and shared by those of one machine.
    """

    def __init__(self, ids: Iterable[str]):
        self.ids = np.sort(np.array([one.encode() for one in ids], np.bytes_))

    def __contains__(self, identity: object) -> bool:
        wanted = str(identity).encode()
        place = int(np.searchsorted(self.ids, wanted))
        return place < len(self.ids) and self.ids[place] == wanted
