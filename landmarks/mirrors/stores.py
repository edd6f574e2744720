"""Object stores, s3:// and gs://, by fsspec: is an object there, download it by ranges, list, upload and delete.

Credentials, region and endpoint are those of the store's own tools (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`,
`AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...) or of fsspec (`FSSPEC_S3='{"anon": true}'`: a public bucket).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from landmarks.mirrors.outages import Absent, Failure, answered, failure_of, server_of
from landmarks.running.command import InputError
from landmarks.running.files import arrived, require_space
from landmarks.running.progress import Progress
from landmarks.running.said import size_of

CHUNK = 16 * 2**20  # bytes of a range: what a cut costs at most, and takes of memory
VERSION = ("ETag", "etag", "generation", "LastModified", "mtime")  # what tells versions apart: the first that is said
NO_CREDENTIALS = ("NoCredentialsError", "DefaultCredentialsError", "ProfileNotFound", "PartialCredentialsError")
Result = TypeVar("Result")
logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # else what it raises is on stderr too, with a traceback


def ask(url: str, action: Callable[[Any, str], Result]) -> Result:
    """What `action` says of fsspec's file system and the path in it.

    Raises Absent, InputError for what only the user can mend, and Failure for the rest. s3fs and gcsfs try five
    times themselves before they raise what may mend.
    """
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise InputError(
            f"{url} needs packages that are not installed ({error}): pip install -r requirements-cluster.txt"
        ) from error
    except Exception as error:  # a setting of fsspec or the store's that cannot be read
        raise InputError(f"{url} cannot be opened: {type(error).__name__}: {error}") from error
    try:
        result = action(system, path)
    except FileNotFoundError as error:
        answered.add(server_of(url))
        raise Absent(f"the store has no such object: check the address ({error})") from error
    except PermissionError as error:
        answered.add(server_of(url))
        raise Absent(
            f"the store forbids it ({error}): check credentials; S3 says so of a missing object too"
        ) from error
    except Exception as error:  # of fsspec, the store's package, its HTTP package, or a socket
        if type(error).__name__ in NO_CREDENTIALS:
            raise InputError(
                f"{url} cannot be read: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
                """GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_S3='{"anon": true}' for a public bucket"""
            ) from error
        raise failure_of(error) from error
    answered.add(server_of(url))
    return result


def find(url: str) -> tuple[int, str]:
    """The size of an object, and what tells its version from others. Raises as `ask` does."""
    info = ask(url, lambda system, path: system.info(path))
    if info["type"] != "file":
        raise Absent("the store has no such object: check the address")
    return info["size"], version(info)


def version(info: dict[str, Any]) -> str:
    """Alike however it was asked for: MinIO tells an object's time to the millisecond in a list, else to the second."""
    return next((str(info[key]) for key in VERSION if key in info), str(info["size"]))


@dataclass
class Transfer:
    """An object on its way to `part`; every `receive` goes on where the last one was cut."""

    url: str
    part: Path
    limit: int
    check: Callable[[], None]
    version: str = ""

    def receive(self) -> None:
        """Bring `part` to its full length; raise Failure, keeping what arrived, when the transfer ends before."""
        size, found = find(self.url)
        if size > self.limit:
            raise InputError(f"{self.url} has {size_of(size)}; more than {size_of(self.limit)} are not accepted")
        if self.version not in ("", found) or arrived(self.part) > size:
            self.part.unlink(missing_ok=True)
        self.version, begin = found, arrived(self.part)
        require_space(self.part.parent, size - begin, f"the rest of {self.url} takes")
        name = self.url.rsplit("/", 1)[-1]
        bar = Progress(desc=name, initial=begin, total=size, unit="B", unit_scale=True, leave=False)
        with open(self.part, "ab") as file, bar:
            while begin < size:
                self.check()
                data = self._range(begin, min(begin + CHUNK, size))
                file.write(data)
                begin += len(data)
                bar.update(len(data))
        if find(self.url)[1] != found:
            self.part.unlink()
            raise Failure("the object changed while it was read")

    def _range(self, begin: int, end: int) -> bytes:
        data = ask(self.url, lambda system, path: system.cat_file(path, start=begin, end=end))
        if len(data) != end - begin:
            raise Failure(f"{size_of(len(data))} came of a range of {size_of(end - begin)}")
        return data


def listed(url: str) -> dict[str, str]:
    """The versions of all objects below a URL, by their names from there."""

    def walk(system: Any, root: str) -> dict[str, str]:
        found = system.find(root, detail=True)
        return {path.removeprefix(root).lstrip("/"): version(info) for path, info in found.items() if path != root}

    return ask(url.rstrip("/"), walk)


def upload(path: Path, url: str) -> str:
    """Write a file as an object, which appears whole or not at all; its version."""
    ask(url, lambda system, place: system.put_file(str(path), place))
    return find(url)[1]


def delete(url: str) -> None:
    ask(url, lambda system, path: system.rm_file(path))
