"""What tests share: small photos, a tiny mirror, and a loopback server that misbehaves on request."""

import io
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings
from PIL import Image

from landmarks.mirrors import build, outages
from landmarks.mirrors.folder import FolderMirror
from landmarks.running import command
from landmarks.running.features_file import Features, save_features
from landmarks.running.recipe import Recipe, from_flat

ROOT = Path(__file__).resolve().parents[1]  # of the project
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the scripts have it; TensorFlow reads it as it is imported
settings.register_profile("long", max_examples=1700)  # pytest --hypothesis-profile=long


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Under .ci/run no test is skipped for want of a package, which the reason says then."""
    report = yield
    reason = str(report.longrepr)
    if report.skipped and "NO_SKIPPED_PACKAGE" in os.environ and ("pip install" in reason or "import" in reason):
        report.outcome = "failed"
    return report


def recipe_with(base: Recipe | None = None, **settings) -> Recipe:
    """A recipe, the default one if none is given, with other settings, by name."""
    before = {name: value for _, section in base or Recipe() for name, value in section}
    return from_flat({**before, **settings}, Path("test"))


def jpeg(seed: int, size=(40, 30), **options) -> bytes:
    """A JPEG of coloured noise blocks: small, and different for every seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(blocks).resize(size).save(encoded, "JPEG", **options)
    return encoded.getvalue()


def extract(tar: Path, folder: Path) -> None:
    """By the system's tar: Python's own has the filter that newer ones ask for only since 3.10.12 and 3.11.4."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-xf", tar, "-C", folder], check=True)


def texture(seed, width, height, grain=16):
    """A photo of coloured blobs, of which no part looks like another."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // grain, width // grain, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def photos_in(folder: Path, count: int, seed: int = 0) -> Path:
    """A folder of that many photos, no two of them alike."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(jpeg(seed + number))
    return folder


def identity(number: int) -> str:
    """A 16-digit id; ids in order of number are not in order of their digits."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def make_mirror(out: Path, landmarks: int = 3, train: int = 8, index: int = 2, test: int = 2, others: int = 4) -> Path:
    """A mirror whose landmark is plain from the colour; `others` photos of none are in test and index each."""
    rows = []
    for landmark in range(1, landmarks + 1):
        rows += [
            (landmark * 10, split)
            for split, n in (("train", train), ("index", index), ("test", test))
            for _ in range(n)
        ]
    rows += [(pd.NA, split) for split in ("index", "test") for _ in range(others)]
    photos = pd.DataFrame(rows, columns=["landmark_id", "split"]).astype({"landmark_id": "Int64"})
    photos["id"] = [identity(number) for number in range(1, len(photos) + 1)]
    photos["url"] = [str(number) for number in range(len(photos))]

    def load(url: str) -> bytes:
        landmark = photos["landmark_id"][int(url)]
        noise = np.random.default_rng(int(url)).integers(0, 60, (24, 32, 3))
        if not pd.isna(landmark):
            noise[..., int(landmark) // 10 % 3] += 180
        encoded = io.BytesIO()
        Image.fromarray(noise.astype(np.uint8)).save(encoded, "JPEG")
        return encoded.getvalue()

    build.build_mirror(
        photos, load, out, {landmark * 10: f"Landmark {landmark}" for landmark in range(1, landmarks + 1)}
    )
    return out


def read_all(folder: Path, split: str) -> dict[str, bytes]:
    mirror = FolderMirror(folder)
    return {p: shard.read(p) for shard in mirror.stream(split, mirror.shard_names(split)) for p in shard.ids}


def write_features(folder: Path, name: str, embeddings, landmark=None, score=None) -> list[Path]:
    """A features file of photos `NAME0`, `NAME1`, ..., the only one of its split."""
    ids = np.array([f"{name}{row}" for row in range(len(embeddings))])
    save_features(folder / f"{name}.npz", Features(ids, np.array(embeddings, np.float32), landmark, score))
    return [folder / f"{name}.npz"]


def mirror_of(train_landmark: list[int]) -> SimpleNamespace:
    """A mirror with no more than the landmarks of its train photos, `train0`, `train1`, ..."""
    ids = [f"train{row}" for row in range(len(train_landmark))]
    return SimpleNamespace(train=lambda: pd.DataFrame({"id": ids, "landmark_id": np.array(train_landmark)}))


def tars(cache: Path) -> list[str]:
    """The shards, whole or in part, that lie in a folder of downloads."""
    return sorted(path.name for path in cache.glob("*/images_*.tar*"))


def make_wheel(folder: Path, tag: str = "py3-none-any") -> Path:
    """A wheel of a package `probe` with one empty module, for Pythons of that tag."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"probe-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("probe.py", "")
        wheel.writestr("probe-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n")
        wheel.writestr(
            "probe-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
        )
        names = [*wheel.namelist(), "probe-1.0.dist-info/RECORD"]
        wheel.writestr("probe-1.0.dist-info/RECORD", "".join(f"{name},,\n" for name in names))
    return path


@pytest.fixture(scope="session")
def tiny_mirror(tmp_path_factory) -> Path:
    return make_mirror(tmp_path_factory.mktemp("mirror") / "tiny")


@pytest.fixture(scope="session")
def small_work(tiny_mirror, tmp_path_factory) -> Path:
    """The work folder of both scripts, which nobody changes."""
    from small_run import finish

    return finish(tiny_mirror, tmp_path_factory.mktemp("small") / "work")


@pytest.fixture(scope="module")
def finished(small_work, tmp_path_factory) -> Path:
    """A copy of it for the tests of a module."""
    return shutil.copytree(small_work, tmp_path_factory.mktemp("finished") / "work")


@pytest.fixture(scope="module")
def cluster(request) -> Iterator:
    """A Ray cluster on this machine: a head without cores, and two nodes of one core each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(request.module)  # the nodes have no tests
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges; `server.faults` maps a path to functions that answer in its place, in turn."""

    def do_HEAD(self):
        self.server.requests.append(("HEAD " + self.path, None))
        faults = self.server.faults.get("HEAD " + self.path)
        if faults:
            return faults.pop(0)(self)
        return super().do_HEAD()

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        faults = self.server.faults.get(self.path)
        if faults:
            return faults.pop(0)(self)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        return self.send_range(path.read_bytes())

    def send_range(self, body: bytes, cut: int | None = None):
        """Answer with `body`, or the range asked for; stop after `cut` bytes although more are promised."""
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if begin and begin >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        self.wfile.write(body[begin:][:cut])
        self.close_connection = True

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """A loopback server of a folder."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults: dict[str, list[Callable[[Handler], None]]] = {}
        self.requests: list[tuple[str, str | None]] = []


@pytest.fixture
def serve():
    """Start a loopback server of a folder: `server = serve(folder)`; `.url`, `.faults`, `.requests`."""
    servers = []

    def start(folder: Path) -> Server:
        server = Server(folder)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A real S3 server on loopback, moto's, which the environment names while a test uses it."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch) -> str:
    """An empty bucket on it."""
    import fsspec

    given = {"ENDPOINT_URL": s3, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    name = f"test-{uuid4().hex}"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


class Clock:
    """A clock that goes forward when somebody waits, and nobody does."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> Clock:
    """No waiting between tries, no server known and no stop request left over from another test."""
    clock = Clock()
    monkeypatch.setattr(outages, "clock", clock)
    monkeypatch.setattr(outages, "stop_event", clock)
    monkeypatch.setattr(outages, "answered", set())
    monkeypatch.setattr(command, "_signals", [])
    monkeypatch.setattr(command, "_warnings", {})
    command.stop_event.clear()
    return clock
