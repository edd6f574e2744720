"""The page of a run: whole where all is there, and a page still where anything is not."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import recipe_with
from finished import NAMES, finish, gathered
from PIL import Image

from landmarks.report import ending, page
from landmarks.running import command


class Parts(HTMLParser):
    """What a page is made of."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += f" {data}" if data.strip() else ""

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def photos(self) -> list[dict[str, str | None]]:
        """The pictures that come from the mirror."""
        return [one for one in self.of("img") if one.get("class") == "photo"]

    @property
    def titles(self) -> list[str | None]:
        return [one.get("id") for one in self.of("section")]


def written(recipe, **given) -> Parts:
    out = recipe.run.work / page.REPORT
    page.write(gathered(recipe, **given), out)
    return Parts(out)


def asks_for(parts: Parts) -> list[str | None]:
    """The addresses in a page that lead out of it."""
    places = [attributes.get(name) for _, attributes in parts.tags for name in ("src", "href", "xlink:href", "srcset")]
    return [place for place in places if place is not None and not place.startswith(("data:image/jpeg;base64,", "#"))]


def test_a_whole_run_has_every_part(work, recipe):
    parts = written(recipe)
    assert parts.titles == "result photos retrieval sure confused verified training data again".split()
    assert asks_for(parts) == []
    assert len(parts.of("svg")) == 6 and all(one["aria-label"] for one in parts.of("svg"))
    assert all(one["alt"] for one in parts.of("img"))
    for words in ("Right, and surest of it", "Wrong, and surest of it", "Best queries", "Worst queries"):
        assert words in parts.text
    assert "Beside the frozen start: 40 held-out train photos" in parts.text
    assert "truncated, at 9 bytes" in parts.text and "1 h 2 min" in parts.text
    assert "python recognition.py --recipe" in parts.text


def test_ids_are_there_once_and_links_lead_to_them(work, recipe):
    parts = written(recipe)
    ids = [attributes["id"] for _, attributes in parts.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {one["href"][1:] for one in parts.of("a")} <= set(ids)
    labels = [attributes["aria-labelledby"] for _, attributes in parts.tags if "aria-labelledby" in attributes]
    assert set(labels) <= set(ids)


def test_what_a_name_says_is_no_markup(work, recipe):
    parts = written(recipe)
    text = (work / page.REPORT).read_text(encoding="utf-8")
    assert not parts.of("script") and not parts.of("i") and "<i>c" not in text and "<b>ש" not in text
    assert NAMES[10] in parts.text and "שלום" in parts.text
    assert NAMES[30].strip() not in parts.text and NAMES[30][:70] in parts.text


@pytest.mark.parametrize("several", [{"models": ["one", "other"]}, {"beside": "small"}], ids=["models", "beside"])
def test_several_models_together_are_a_page(mirror, tmp_path, several):
    recipe = recipe_with(work=tmp_path / "work", mirror=str(mirror), **several)
    finish(recipe)
    parts = written(recipe)
    assert {"photos", "retrieval", "sure"} <= set(parts.titles) and len(parts.of("img")) > 20
    assert ("python recognition.py --work one,other" in parts.text) == ("models" in several)


def test_photos_that_are_far_away_are_said_to_be(work, recipe):
    away = recipe.model_copy(update={"source": recipe.source.model_copy(update={"mirror": str(work / "gone")})})
    parts = written(away)
    assert not parts.photos and "photo not at hand" in parts.text
    assert f"the mirror {work / 'gone'} is not there" in parts.text and "No solution of recognition" in parts.text
    assert "Surest" in parts.text and "Some queries" in parts.text and "sure" not in parts.titles
    assert "GAP" in parts.text  # which metrics.json tells


def test_solutions_may_be_given(work, recipe, mirror):
    away = recipe.model_copy(update={"source": recipe.source.model_copy(update={"mirror": str(work / "gone")})})
    parts = written(away, recognition=mirror / "ground_truth/recognition_solution_v2.1.csv")
    assert "sure" in parts.titles and "Some queries" in parts.text


def test_a_mirror_at_a_url_is_asked_for_nothing(work, recipe, mirror, serve):
    server = serve(mirror)
    for folder in ("metadata", "ground_truth"):  # as the run has left them
        shutil.copytree(mirror / folder, work / "mirror" / folder)
    source = recipe.source.model_copy(update={"mirror": server.url.replace("://", "://name:word@")})
    parts = written(recipe.model_copy(update={"source": source}))
    assert server.requests == [] and not parts.photos and "sure" in parts.titles
    assert "at a URL" in parts.text and "word" not in parts.text


def test_recognition_alone_is_a_page(work, recipe):
    for name in ("retrieval.csv", "retrieval.metrics.json", "gallery.npz", "runs.csv", "skipped.csv", "start.json"):
        (work / name).unlink()
    shutil.rmtree(work / "features/index")
    parts = written(recipe)
    assert "retrieval" not in parts.titles and "photos" in parts.titles and "no train photo was embedded" in parts.text
    assert "There is no retrieval.csv" in parts.text and "No photo was unreadable" in parts.text
    assert "was not kept" in parts.text


def test_a_run_that_has_only_begun_is_a_page(work, recipe):
    for path in work.iterdir():
        if path.name not in ("recipe.toml", "training.csv"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    parts = written(recipe)
    assert parts.titles == ["result", "training", "data", "again"]
    assert "Nothing has been predicted here yet." in parts.text


@pytest.mark.parametrize("name", "training.csv gallery.npz start.json recognition.csv skipped.csv runs.csv".split())
def test_what_is_damaged_is_left_out(work, recipe, name):
    (work / name).write_bytes(b'\xff\x00"')
    assert "result" in written(recipe).titles


@pytest.mark.parametrize("kept", [1, 3])
def test_few_photos_are_shown_once(work, recipe, mirror, kept):
    for task in ("recognition", "retrieval"):
        lines = (work / f"{task}.csv").read_text().splitlines()
        (work / f"{task}.csv").write_text("\n".join(lines[: kept + 1]) + "\n")
    solution = (mirror / "ground_truth/recognition_solution_v2.1.csv").read_text().splitlines()
    ids = [line.split(",")[0] for line in lines[1 : kept + 1]]
    few = work / "few.csv"
    few.write_text("\n".join([solution[0], *(line for line in solution[1:] if line.split(",")[0] in ids)]) + "\n")
    parts = written(recipe, recognition=few)
    photos = [one["alt"] for one in parts.of("img") if str(one["alt"]).startswith("Test photo")]
    assert len(photos) == len(set(photos)) == kept


def test_the_page_is_small(work, recipe, monkeypatch):
    """As large as it can get: all photos are noise, which a JPEG cannot shrink."""
    from landmarks.report import thumbnails

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))
    of_noise = thumbnails._address(noise, thumbnails.SIDE)
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (448, 896, 3), dtype=np.uint8))
    most = 2 * 27 + 9 * 11  # galleries, and queries with their neighbours
    assert most * len(of_noise) + 12 * len(thumbnails._address(wide, thumbnails.WIDTH)) < 13e6
    written(recipe)
    assert (work / page.REPORT).stat().st_size < 1e6


def test_a_fault_of_the_page_does_not_spoil_the_run(work, recipe, monkeypatch, capsys):
    monkeypatch.setattr(page, "write", lambda *_: 1 / 0)
    given = recipe.run, recipe.source, 0, recipe.model_dump(mode="json"), "recognition"
    ending.keep(*given)
    command._say_warnings()
    assert "report.html could not be written: ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.undo()
    ending.keep(*given)
    assert (work / page.REPORT).exists()


def test_runs_lie_side_by_side(work, recipe, tmp_path):
    other = shutil.copytree(work, tmp_path / "other")
    answers = (other / "recognition.csv").read_text()
    (other / "recognition.csv").write_text(re.sub(",[0-9]+ ", ",10 ", answers))
    (other / "retrieval.metrics.json").write_text(json.dumps({"private": {"map@100": 0.125}}))
    changed = recipe.run.model_copy(update={"work": other, "index_parts": 3})
    runs = [gathered(recipe), gathered(recipe.model_copy(update={"run": changed}))]
    page.compare(runs, tmp_path / "comparison.html")
    parts = Parts(tmp_path / "comparison.html")
    assert asks_for(parts) == [] and len(parts.of("svg")) == 1
    assert "index_parts" in parts.text and "0.125" in parts.text and "GAP, less that of A" in parts.text
    assert re.search(r"[-−]0\.\d{3} ± 0\.\d{3}", parts.text) and "2 h 4 min" not in parts.text
