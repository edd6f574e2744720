"""The page: its answers by Flask's own client, and the whole of it in Chromium, a bad file included."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import scripts
import tiny  # noqa: F401
from conftest import ROOT, jpeg
from PIL import Image

import explore
from landmarks.mirrors.folder import FolderMirror
from landmarks.neighbours.identification import Identifier

pytest.importorskip("flask", reason="pip install -r requirements-explore.txt")
pytest.importorskip("waitress", reason="pip install -r requirements-explore.txt")
SETTINGS = [
    *scripts.PLAIN, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=8", "--epochs=2",
    "--learning-rate=3e-3",
]  # fmt: skip
DROP = """() => {  // a file that is no photo, beside the field for it
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File(["no photo"], "dropped.jpg"));
    document.querySelector("label").dispatchEvent(new DragEvent("drop", {bubbles: true, dataTransfer}));
}"""
HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def work(tiny_mirror, tmp_path_factory) -> Path:
    """A finished one that knows a landmark of a hostile name, and one that was added."""
    folder = tmp_path_factory.mktemp("finished")
    mirror = shutil.copytree(tiny_mirror, folder / "mirror")
    names = mirror / "metadata/train_label_to_category.csv"
    names.write_text(names.read_text().replace("Landmark 1", HOSTILE.replace('"', "'")))
    (folder / "more/Church").mkdir(parents=True)
    (folder / "more/Church/0.jpg").write_bytes(jpeg(7))
    for script, arguments in (
        ("recognition.py", [f"--work={folder / 'work'}", f"--mirror={mirror}", *SETTINGS]),
        ("retrieval.py", ["add", folder / "work", folder / "more"]),
    ):
        done = scripts.run(ROOT / script, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder / "work"


@pytest.fixture(scope="module")
def train(tiny_mirror) -> dict[str, bytes]:
    """The train photos of the mirror, by id."""
    mirror = FolderMirror(tiny_mirror)
    shards = mirror.stream("train", mirror.shard_names("train"))
    return {identity: shard.read(identity) for shard in shards for identity in shard.ids}


@pytest.fixture(scope="module")
def app(work):
    return explore.page(Identifier(work), "sift", 0.0, explore.LOCAL)


@pytest.fixture
def client(app):
    return app.test_client()


def ask(client, data: bytes, name: str = "photo.jpg", **options):
    return client.post("/", data={"photo": (io.BytesIO(data), name)}, **options)


def test_a_photo_is_named_as_identify_does(client, work, train):
    identity, data = next(iter(train.items()))
    answer = Identifier(work).identify(data, threshold=0)
    said = ask(client, data)
    text = said.get_data(as_text=True)
    assert said.status_code == 200
    assert f"Landmark {answer.landmark}, confidence {answer.confidence:.3f}" in text
    assert f"/photo/{answer.nearest[0].id}" in text and text.count("inliers</figcaption>") == explore.COMPARED
    text = ask(client, jpeg(7)).get_data(as_text=True)
    assert '<p class="verdict">Church</p>' in text
    assert text.count("data:image/jpeg") == 1 + explore.COMPARED


def test_landmarks_are_looked_through(client, tiny_mirror, train):
    text = client.get("/").get_data(as_text=True)
    for landmark in (10, 20, 30, 31):
        assert f'href="/landmark/{landmark}"' in text
    assert "onerror=" in text and "<img src=x" not in text  # escaped
    table = pd.read_csv(tiny_mirror / "metadata/train.csv")
    text = client.get("/landmark/20").get_data(as_text=True)
    for identity in table.loc[table["landmark_id"] == 20, "id"]:
        assert f"/photo/{identity}" in text
    identity = table["id"][0]
    with Image.open(io.BytesIO(client.get(f"/photo/{identity}").data)) as shown:
        assert shown.size == Image.open(io.BytesIO(train[identity])).size
    for gone in ("/landmark/99", "/photo/nope", "/photo/..%2f..%2fmodel.keras", "/landmark/20/x"):
        assert client.get(gone).status_code == 404


def test_more_than_a_page_holds(client, monkeypatch):
    monkeypatch.setattr(explore, "A_PAGE", 3)
    seen: list[str] = []
    for number in range(3):
        text = client.get(f"/landmark/10?page={number}").get_data(as_text=True)
        assert f"page {number + 1} of 3" in text
        seen += [part.split('"')[0] for part in text.split('src="/photo/')[1:]]
    assert len(seen) == len(set(seen)) == 8
    assert client.get("/landmark/10?page=x").status_code == 200


@pytest.mark.parametrize("data", [b"", b"no photo", jpeg(1)[:200]])
def test_a_bad_file_is_one_line(client, data):
    said = ask(client, data, "<b>bad.jpg")
    text = said.get_data(as_text=True)
    assert said.status_code == 400
    assert text.count('role="alert"') == 1 and "&lt;b&gt;bad.jpg cannot be read: " in text
    assert 'href="/landmark/10"' in text  # one can go on


def test_requests_that_are_refused(client, monkeypatch):
    assert "no photo was given" in client.post("/", data={}).get_data(as_text=True)
    assert ask(client, jpeg(1), headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"Host": "127.0.0.1:8080"}).status_code == 200
    monkeypatch.setitem(client.application.config, "MAX_CONTENT_LENGTH", 1000)
    said = ask(client, bytes(2000))
    assert said.status_code == 413 and "larger than 64 MiB" in said.get_data(as_text=True)


def test_photos_that_are_smaller_than_features_need_are_shown_without_lines(client):
    assert "0 inliers" in ask(client, jpeg(3, (8, 8))).get_data(as_text=True)


def test_without_its_mirror_only_the_photos_are_missing(work, tmp_path, train):
    moved = shutil.copytree(work, tmp_path / "work")
    text = (moved / "recipe.toml").read_text()
    (moved / "recipe.toml").write_text(text.replace(str(work.parent), str(tmp_path / "gone")))
    client = explore.page(Identifier(moved), "sift", 0.0, None).test_client()
    said = ask(client, jpeg(7))
    assert said.status_code == 200 and said.get_data(as_text=True).count("inliers</figcaption>") == 1  # that was added
    assert client.get(f"/photo/{next(iter(train))}").status_code == 404
    assert client.get("/", headers={"Host": "any.example"}).status_code == 200


def test_wrong_arguments_are_one_clear_line(work, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, message in (
            ([tmp_path / "none"], "there is no trained model"),
            ([work, "--port=x"], "'x' is no whole number of 0 or more"),
            ([work, f"--port={taken.getsockname()[1]}"], "give another"),
        ):
            done = scripts.run(ROOT / "explore.py", *arguments)
            assert done.returncode == 2
            assert message in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def served(work):
    """The address at which the command itself serves the work folder."""
    command = [sys.executable, ROOT / "explore.py", work, "--port=0", "--extractor=sift", "--threshold=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        yield line.split()[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert line.startswith("http://127.0.0.1:")


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser: pip install playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    with playwright.sync_playwright() as running:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = running.chromium.launch(executable_path=path, args=options)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(served, browser, tmp_path, train, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(120_000)
    told, asked = [], []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))

    def look() -> None:
        pictures = page.locator("img")
        for number in range(pictures.count()):
            pictures.nth(number).scroll_into_view_if_needed()  # those that are far below load then
            page.wait_for_function("one => one.complete", arg=pictures.nth(number).element_handle())
        assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    page.goto(served)
    look()
    good, bad, large = (tmp_path / name for name in ("photo.jpg", "bad.jpg", "large.jpg"))
    good.write_bytes(next(iter(train.values())))
    bad.write_bytes(b"no photo")
    with open(large, "wb") as file:
        file.truncate(64 * 2**20 + 1)
    page.set_input_files("input[type=file]", good)
    page.wait_for_selector(".verdict")
    assert page.locator("figure").count() == explore.COMPARED
    look()
    page.click("table a")
    page.wait_for_selector("h2")
    assert "/landmark/" in page.url
    look()
    page.set_input_files("input[type=file]", large)
    assert "large.jpg is larger than 64 MiB" in page.inner_text("[role=status]")
    assert told == [] and page.title() != "1"  # no name of a landmark has run
    page.set_input_files("input[type=file]", bad)
    page.wait_for_selector("[role=alert]")
    assert "bad.jpg cannot be read" in page.inner_text("[role=alert]") and "\n" not in page.inner_text("[role=alert]")
    page.evaluate(DROP)
    page.wait_for_selector("text=dropped.jpg cannot be read")
    page.set_input_files("input[type=file]", good)
    page.wait_for_selector(".verdict")  # and it goes on
    assert all(url.startswith((served, "data:")) for url in asked)
