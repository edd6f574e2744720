"""The pages in a browser: it complains of nothing, shows all pictures, asks for nothing, and axe finds no barrier."""

import importlib.util
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from finished import gathered

from landmarks.report import page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--virtual-time-budget=60000", "--dump-dom",
)  # fmt: skip
DARK, LIGHT = "--blink-settings=preferredColorScheme=0", "--blink-settings=preferredColorScheme=1"
CHECK = """
<script>{axe}</script>
<script>
addEventListener("load", async () => {{
  for (const details of document.querySelectorAll("details")) details.open = true;
  const found = await axe.run(document, {{resultTypes: ["violations"]}});
  const said = {{
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    pictures: document.images.length,
    unseen: [...document.images].filter(one => !one.complete || !one.naturalWidth).length,
    requests: performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:")),
    overflow: document.documentElement.scrollWidth - innerWidth,
    barriers: found.violations.map(one => [one.impact, one.id, one.nodes[0].html.slice(0, 200)]),
  }};
  const pre = document.createElement("pre");
  pre.id = "said";
  pre.textContent = JSON.stringify(said);
  document.body.append(pre);
}});
</script>
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the PATH")


def browse(path: Path, *options: str) -> tuple[str, list[str]]:
    """The page as the browser has it when it is done, and what its console says."""
    command = [str(BROWSER), *QUIET, f"--user-data-dir={path.with_suffix('.profile')}", *options, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(params=["run", "comparison"])
def written(request, work, recipe) -> Path:
    run, out = gathered(recipe), work / f"{request.param}.html"
    if request.param == "comparison":
        page.compare([run, run, run._replace(scores={**run.scores, "retrieval": {}})], out)
    else:
        page.write(run, out)
    return out


def test_the_console_is_silent(written):
    """A request would be heard of: the page's own policy forbids every one."""
    whole, console = browse(written)
    assert "default-src 'none'" in whole and console == []
    breaking = written.with_name("breaking.html")
    breaking.write_text(written.read_text(encoding="utf-8").replace("</main>", '<img src="absent.jpg"></main>'))
    assert browse(breaking)[1]


@pytest.mark.parametrize(("colours", "width"), [(LIGHT, 1280), (DARK, 500)], ids=["wide and light", "narrow and dark"])
def test_pictures_load_nothing_is_asked_for_and_nobody_is_shut_out(written, colours, width):
    axe = importlib.util.find_spec("axe_core_python")
    if axe is None or not axe.submodule_search_locations:
        pytest.skip("needs pip install axe-core-python")
    script = Path(axe.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")
    text = written.read_text(encoding="utf-8")
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # it lets no script in
    written.write_text(open_page.replace("</body>", CHECK.format(axe=script) + "</body>"), encoding="utf-8")
    shown, _ = browse(written, colours, f"--window-size={width},2000")
    found = re.search(r'<pre id="said">(.*?)</pre>', shown)
    assert found, "the script has not ended"
    said = json.loads(unescape(found[1]))
    assert said["dark"] == (colours == DARK)
    assert said["unseen"] == 0 and said["requests"] == [] and said["overflow"] <= 0
    assert said["pictures"] > 30 or written.stem == "comparison"
    assert said["barriers"] == []
