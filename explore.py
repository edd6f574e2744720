"""A page to try a finished work folder on: drop a photo, see what it shows, and browse the train photos by landmark.

    pip install -r requirements-explore.txt
    python explore.py [WORK|A,B] [--port 8080] [--host 127.0.0.1] [--extractor untrained|sift] [--threshold 0.5]

The answer is that of identify.py, with lines between what the photo and the train photos most like it have in common:
the inliers, by untrained DELF or by SIFT. Photos of the mirror are shown while it is in a folder.

It serves this machine alone unless `--host` says otherwise; then anyone who reaches that address may look at the photos
and have some looked at. The page asks no other server for anything and tells nobody. A photo that is dropped there is
not kept, and may have 64 MiB.
"""

import argparse
import base64
import io
import ipaddress
import logging
import signal
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from landmarks.local_features.extractors import open_extractor
from landmarks.local_features.matching import MATCHING, inliers
from landmarks.local_features.points import SMALLEST_SIDE, decode, opencv
from landmarks.mirrors.images import UnreadablePhoto, open_photo
from landmarks.mirrors.shards import MAX_PHOTO_BYTES
from landmarks.running import command
from landmarks.running.command import InputError

if TYPE_CHECKING:
    from flask import Flask

    from landmarks.neighbours.identification import Answer, Identifier

COMPARED = 3  # train photos whose inliers are drawn
SIDE = 512  # pixels of the photos that are compared, as in verification.py
POINTS = 1000
THUMBNAIL = 240  # pixels
A_PAGE = 24  # photos of a landmark, or landmarks
MOST_FORM = 2**16  # bytes of a request beside its photo
READ_AT_ALL = 4 * MAX_PHOTO_BYTES  # of a request: one in between is told what is wrong, a longer one is cut off
LOCAL = ["localhost", "127.0.0.1", "[::1]"]


class Compared(NamedTuple):
    """A train photo beside the one that was asked about."""

    caption: str
    picture: str  # a data: URI


class Photos:
    """The photos of a work folder's gallery that are at hand, by id."""

    def __init__(self, identifier: "Identifier"):
        from landmarks.mirrors.folder import FolderMirror  # pandas, which --help need not wait for
        from landmarks.mirrors.open import open_mirror
        from landmarks.mirrors.random_access import RandomAccess

        self.table = identifier.gallery()
        recipe, self._work = identifier.recipe, identifier.recipe.run.work
        self._train: RandomAccess | None = None
        try:
            source, cache = recipe.source.mirror, self._work / "mirror"
            if source == "sample" and not cache.exists():
                raise InputError("the sample is in the work folder no more")
            mirror = open_mirror(source, cache, recipe.training.seed, recipe.source)
            if not isinstance(mirror, FolderMirror):
                raise InputError(f"{source} is no folder")
            there = set(mirror.shard_names("train"))
            own = self.table[self.table["shard"].isin(there)]
            self._train = RandomAccess(mirror, "train", sorted(set(own["shard"])), own["id"], SIDE)
        except InputError as error:
            print(f"photos of the mirror are not shown: {error}", file=sys.stderr)

    def read(self, identity: str) -> bytes | None:
        """The encoded photo; None where it is not at hand."""
        from landmarks.mirrors import added

        if here := added.photos_of(self._work, [identity]):
            return here[identity]
        try:
            return self._train.read(identity) if self._train else None
        except (KeyError, OSError):
            return None


def main() -> None:
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", default="work", metavar="WORK", help="of a finished run (default work)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=command.at_least(0), default=8080, help="0: any that is free (default 8080)")
    parser.add_argument("--extractor", choices=["untrained", "sift"], default="untrained", help="of local features")
    parser.add_argument("--threshold", type=float, default=0.5, help="below it is no landmark (default 0.5)")
    given = parser.parse_args()
    try:
        import flask  # noqa: F401
        import waitress
    except ImportError as error:
        raise InputError(f"explore.py needs {error.name}: pip install -r requirements-explore.txt") from error
    opencv()
    command.prepare_backend()
    from landmarks.neighbours.identification import Identifier  # Keras takes seconds, which --help need not wait for

    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a page with many photos is no reason to warn
    identifier = Identifier(given.work)
    app = page(identifier, given.extractor, given.threshold, None if _is_public(given.host) else LOCAL)
    try:
        server = waitress.create_server(
            app, host=given.host, port=given.port, max_request_body_size=READ_AT_ALL, ident=None
        )
    except OSError as error:
        raise InputError(f"--host {given.host} --port {given.port}: {error.strerror}; give another") from error
    print(f"http://{given.host}:{server.effective_port} shows {given.work}; Ctrl-C ends it", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())  # which waitress takes for its end
    server.run()


def page(identifier: "Identifier", extractor: str, threshold: float, hosts: list[str] | None) -> "Flask":
    """The application: the form and its answer at `/`, a landmark at `/landmark/ID`, photos at `/photo/ID`.

    Args:
        hosts: the names that requests may have for this server; any when None. Else a page elsewhere could have its own
            name lead here, and read what this one shows.
    """
    from flask import Flask, abort, render_template, request
    from werkzeug.exceptions import HTTPException

    app = Flask(__name__, static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_PHOTO_BYTES + MOST_FORM, MAX_FORM_PARTS=4, TRUSTED_HOSTS=hosts)
    app.jinja_env.globals |= {"work": identifier.recipe.run.work.resolve().name, "limit": MAX_PHOTO_BYTES}
    photos, extract = Photos(identifier), open_extractor(extractor, points=POINTS)
    one_at_a_time = threading.Lock()  # the model and faiss are for one thread
    table = photos.table
    counts = table.groupby("landmark").agg(name=("name", "first"), photos=("id", "size"), first=("id", "first"))

    def landmarks(number: int) -> dict:
        return {"landmarks": counts.iloc[number * A_PAGE :][:A_PAGE], "number": number, "last": _last(len(counts))}

    @app.get("/")
    def front():
        return render_template("explore.html", **landmarks(_number(request.args.get("page"))))

    @app.post("/")
    def ask():
        if request.headers.get("Sec-Fetch-Site") == "cross-site":
            abort(403)
        file = request.files.get("photo")
        if file is None or not file.filename:
            return complain("no photo was given: choose one, or drop it on the field"), 400
        data = file.read(MAX_PHOTO_BYTES + 1)
        if len(data) > MAX_PHOTO_BYTES:
            abort(413)
        try:
            with one_at_a_time:
                answer = identifier.identify(data, threshold=threshold)
                compared = compare(data, answer, photos, extract, extractor)
        except (UnreadablePhoto, InputError) as error:
            return complain(f"{file.filename} cannot be read: {error}"), 400
        shown = {"answer": answer, "photo": _uri(_thumbnail(data, SIDE)), "threshold": threshold, "compared": compared}
        return render_template("explore.html", name=file.filename, **shown)

    @app.get("/landmark/<int:landmark>")
    def of_landmark(landmark: int):
        rows = table[table["landmark"] == landmark]
        if rows.empty:
            abort(404)
        number = _number(request.args.get("page"))
        return render_template(
            "explore.html",
            landmark=landmark, title=rows["name"].iloc[0], photos=rows.iloc[number * A_PAGE :][:A_PAGE],
            count=len(rows), number=number, last=_last(len(rows)),
        )  # fmt: skip

    @app.get("/photo/<identity>")
    def photo(identity: str):
        data = photos.read(identity) if (table["id"] == identity).any() else None
        try:
            return app.response_class(_thumbnail(data or b"", THUMBNAIL), mimetype="image/jpeg")
        except UnreadablePhoto:
            abort(404)

    def complain(line: str) -> str:
        return render_template("explore.html", error=" ".join(line.split()), **landmarks(0))

    @app.errorhandler(HTTPException)
    def wrong(error: HTTPException):
        limit = f"the photo is larger than {MAX_PHOTO_BYTES >> 20} MiB"
        lines = {413: limit, 404: "there is no such page", 403: "another site asked for this: use the form here"}
        return complain(lines.get(error.code or 500, f"that did not work: {error.description}")), error.code or 500

    @app.after_request
    def protect(response):
        response.headers["Content-Security-Policy"] = (
            "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return app


def compare(data: bytes, answer: "Answer", photos: Photos, extract, extractor: str) -> list[Compared]:
    """The first train photos of an answer beside the photo, with a line for each inlier."""
    from landmarks.local_features.drawing import draw_matches

    one = decode(data, SIDE)
    seen = extract([one])[0] if min(one.shape[:2]) >= SMALLEST_SIDE else None
    found = []
    for other in answer.nearest[:COMPARED]:
        caption = f"{other.landmark} {other.name}, similarity {other.similarity:.3f}"
        there = photos.read(other.id)
        if there is None:
            continue
        train = decode(there, SIDE)
        rows = np.empty((0, 2), int)
        if seen is not None and min(train.shape[:2]) >= SMALLEST_SIDE:
            (of_train,) = extract([train])
            rows = inliers(seen, of_train, MATCHING[extractor])
            picture = draw_matches(one, train, seen.points[rows[:, 0]], of_train.points[rows[:, 1]])
        else:
            picture = draw_matches(one, train, rows, rows)
        found.append(Compared(f"{caption}: {len(rows)} inliers", _uri(_jpeg(picture))))
    return found


def _thumbnail(data: bytes, side: int) -> bytes:
    image = open_photo(data, side)
    image.thumbnail((side, side))
    return _jpeg(image)


def _jpeg(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def _uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _number(text: str | None) -> int:
    return min(int(text), 10**6) if text and text.isascii() and text.isdigit() and len(text) < 8 else 0


def _last(count: int) -> int:
    return max(count - 1, 0) // A_PAGE


def _is_public(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


if __name__ == "__main__":
    command.run(main)
