"""Files and answers from strangers: each is read, or refused by the error that its reader documents, and soon."""

import itertools
import resource
import time

import pytest

SECONDS = 4  # of processor time for one input, on a machine that does other things too
PEAK = 300 * 2**10  # KiB that one input may add to the most memory that this process has had
numbers = itertools.count()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture
def read_within_bounds(tmp_path):
    """Write a file into a folder of its own and read it: what comes back, or None for one of the errors."""

    def read(reader, data: bytes, name: str, *errors: type[Exception], message_limit: int = 20_000):
        inside = tmp_path / "work" / str(next(numbers))
        inside.mkdir(parents=True)
        (inside / name).write_bytes(data)
        outside = sorted(path for path in tmp_path.rglob("*") if inside not in path.parents)
        begun, before = time.process_time(), peak()
        try:
            return reader(inside / name)
        except errors as error:
            assert str(error) and len(str(error)) < message_limit
            return None
        finally:
            seconds, more = time.process_time() - begun, peak() - before
            assert sorted(path for path in tmp_path.rglob("*") if inside not in path.parents) == outside
            for path in inside.iterdir():
                path.unlink()
            inside.rmdir()
            assert seconds < SECONDS and more < PEAK

    return read
