"""Curves and histograms as SVG in the page's own colours, each with its numbers as a table for who cannot see it."""

import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from landmarks.report import judged

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # else it tells that it looks for fonts
INK, FAINT, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707")
COLOURS = {  # what matplotlib draws in, and what the page's style has in its place: in the light, the dark, on paper
    **{INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)"},
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
}
DASHES = ("-", "--", ":", "-.")  # so that nothing is told by colour alone
matplotlib.rcParams.update({
    "figure.figsize": (4.7, 3.1),  # inches of 72 units: letters keep their size on a phone
    "figure.constrained_layout.use": True, "svg.fonttype": "none", "font.size": 9.5, "axes.titlesize": 10,
    "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.edgecolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT, "grid.color": GRID, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "lines.linewidth": 1.8,
    "legend.frameon": False, "legend.fontsize": 9, "hatch.linewidth": 0.8,
})  # fmt: skip
MOST_POINTS = 400  # of a curve
MOST_ROWS = 30  # of a table
BINS = 24
TICKS = {  # of probabilities, by how many units of their log odds the axis has at most: 34 pixels a label
    15.0: (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999), 25.0: (0.001, 0.1, 0.5, 0.9, 0.999), np.inf: (0.001, 0.5, 0.999),
}  # fmt: skip


class Drawn(NamedTuple):
    """A figure, and what it shows as a table."""

    svg: Markup
    columns: list[str]
    rows: list[list[str]]


def photos_per_landmark(counts: pd.Series) -> Drawn:
    """How many landmarks have how many train photos, in bins that double."""
    doubling = np.log2(counts.to_numpy()).astype(int)
    first = int(doubling.min())
    landmarks = np.bincount(doubling - first)
    names = [f"{2**n:,}–{2 ** (n + 1) - 1:,}" if n else "1" for n in range(first, first + len(landmarks))]
    axes = _axes("train photos of a landmark", "landmarks")
    axes.bar(np.arange(len(landmarks)), landmarks, color=SERIES[0], width=min(0.8, 0.2 * len(landmarks)))
    axes.set_xticks(np.arange(len(landmarks)), names)
    axes.set_xlim(-0.7, len(landmarks) - 0.3)
    if len(names) > 5:
        axes.tick_params(axis="x", rotation=40)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    rows = [[name, f"{count:,}"] for name, count in zip(names, landmarks.tolist(), strict=True)]
    svg = _svg(axes, "photos", "Histogram of the train photos of a landmark")
    return Drawn(svg, ["train photos", "landmarks"], rows)


def training_curves(training: pd.DataFrame, columns: Sequence[str], title: str, name: str) -> Drawn:
    """Some columns of training.csv by mini-epoch."""
    axes = _axes("mini-epoch", "")
    labels = [column.replace("_", " ") for column in columns]
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(training) < 20 else {}
    for number, (column, label) in enumerate(zip(columns, labels, strict=True)):
        axes.plot(training["mini_epoch"], training[column], label=label, **_line(number), **marker)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    if len(columns) > 1:
        axes.legend()
    rows = [[f"{row['mini_epoch']:.0f}", *(f"{row[column]:.3g}" for column in columns)] for row in _some(training)]
    return Drawn(_svg(axes, name, f"{title} by mini-epoch"), ["mini-epoch", *labels], rows)


def precision_by_rank(curves: dict[str, pd.DataFrame]) -> Drawn:
    """The precision up to each rank of GAP's order; `curves` as `judged.ranked` has them, by what the legend says."""
    axes = _axes("predictions, surest first", "part that is right")
    rows = []
    for number, (label, ranking) in enumerate(curves.items()):
        precision = ranking["precision"].to_numpy()
        ranks = _places(len(precision), MOST_POINTS)
        axes.plot(ranks + 1, precision[ranks], label=label, **_line(number))
        rows += [[label, f"{rank + 1:,}", f"{precision[rank]:.3f}"] for rank in _places(len(precision), 12)]
    axes.set_ylim(0, 1.03)
    axes.set_xlim(left=0)
    axes.legend(loc="lower left")
    svg = _svg(axes, "precision", "Precision against rank")
    return Drawn(svg, ["curve", "first predictions", "part that is right"], rows)


def score_histograms(photos: pd.DataFrame, threshold: judged.Threshold) -> Drawn:
    """Scores of photos that show a landmark, upwards, and of those that show none, downwards, with the threshold."""
    predicted = photos[photos["score"].notna()]
    score, shows = predicted["score"].to_numpy(float), predicted["shown"].map(len).to_numpy() > 0
    edges, scale = _edges(score)
    upwards, downwards = (np.histogram(score[some], edges)[0] for some in (shows, ~shows))
    top, bottom = 1.25 * max(int(upwards.max()), 1), 1.1 * max(int(downwards.max()), 1)
    axes = _axes("score", "photos")
    axes.set_xscale(scale)
    if scale == "logit":
        units = np.log(edges[-1] / (1 - edges[-1])) - np.log(edges[0] / (1 - edges[0]))
        ticks = next(ticks for most, ticks in TICKS.items() if units <= most)
        axes.set_xticks([one for one in ticks if edges[0] <= one <= edges[-1]])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    left, width = edges[:-1], np.diff(edges)
    axes.bar(left, upwards, width, align="edge", color=SERIES[0], label="photos of a landmark")
    axes.bar(
        left, -downwards, width, align="edge", label="photos of none", hatch="////", facecolor="none",
        edgecolor=SERIES[1],
    )  # fmt: skip
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(-bottom, top)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.axvline(threshold.score, color=INK, linestyle="--", linewidth=1.4)
    is_right = np.searchsorted(edges, threshold.score) > BINS // 2
    words, where = f"best threshold {threshold.score:.3g}", (threshold.score, top)
    side: dict[str, Any] = {"xytext": (-5, -2), "ha": "right"} if is_right else {"xytext": (5, -2), "ha": "left"}
    axes.annotate(words, where, textcoords="offset points", va="top", **side)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.17), ncol=2)
    rows = [
        [f"{edges[number]:.3g} to {edges[number + 1]:.3g}", f"{one:,}", f"{other:,}"]
        for number, (one, other) in enumerate(zip(upwards.tolist(), downwards.tolist(), strict=True))
    ]
    svg = _svg(axes, "scores", "Histograms of the scores of photos of a landmark and of photos of none")
    return Drawn(svg, ["score", "photos of a landmark", "photos of none"], rows)


def reliability(bins: pd.DataFrame) -> Drawn:
    """Of predictions that are so sure, how many are right; `bins` as `judged.reliability` has them."""
    axes = _axes("mean score", "part that is right")
    axes.plot([0, 1], [0, 1], "--", color=FAINT, linewidth=1)
    axes.errorbar(bins["score"], bins["right"], bins["error"], fmt="o-", color=SERIES[0], elinewidth=1, markersize=4)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.04, 1.04)
    axes.annotate("as sure as right", (0.62, 0.6), va="top")
    rows = [
        [f"{one.score:.3f}", f"{one.right:.3f} ± {one.error:.3f}", f"{one.photos:,.0f}"] for one in bins.itertuples()
    ]
    svg = _svg(axes, "reliability", "Reliability diagram")
    return Drawn(svg, ["mean score", "part that is right", "photos"], rows)


def _axes(x: str, y: str) -> Axes:
    return Figure().subplots(subplot_kw={"xlabel": x, "ylabel": y})


def _line(number: int) -> dict[str, Any]:
    return {"color": SERIES[number % 4], "linestyle": DASHES[(number + number // 4) % 4]}  # of 16 each is another


def _edges(score: np.ndarray) -> tuple[np.ndarray, str]:
    """The edges of the bins for scores, and the axis' scale.

    Probabilities near 0 and 1 are many: they are told apart by their odds. Scores may be powers: 1e-86 and 1 are in one
    submission then.
    """
    low, high = float(score.min()), float(score.max())
    if 0 < low < 0.01 and 0.99 < high < 1:
        logits = np.linspace(np.log(low / (1 - low)), np.log(high / (1 - high)), BINS + 1)
        return np.concatenate([[low], 1 / (1 + np.exp(-logits[1:-1])), [high]]), "logit"
    if low > 0 and high / low > 1e4:
        return np.geomspace(low, high, BINS + 1), "log"
    if 0 <= low and high <= 1:
        low, high = 0.0, 1.0
    return np.linspace(low, high if high > low else low + 1, BINS + 1), "linear"


def _places(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def _some(table: pd.DataFrame) -> Iterator[pd.Series]:
    return (row for _, row in table.iloc[_places(len(table), MOST_ROWS)].iterrows())


def _svg(axes: Axes, name: str, words: str) -> Markup:
    """The figure with `name` before each of its ids, which are unique in the page then, and `words` for who listens."""
    written = io.StringIO()
    matplotlib.rcParams["svg.hashsalt"] = name  # else ids are drawn by chance
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    for before in (' id="', "url(#", 'href="#'):
        svg = svg.replace(before, f"{before}{name}-")
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(words)}" ', 1))
