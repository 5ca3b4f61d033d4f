"""The figure of a comparison: a bar per method, the three best marked, the ceiling as a line.

In the style of figure 2 of Archit & Pape 2024 (https://arxiv.org/abs/2404.07705), with the
uncertainty that it leaves out. Needs matplotlib.
"""

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimunet.comparison.sentences import number, plural, printable, ranking, score_text
from vimunet.io.atomic import replacing

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "The figure of a comparison needs matplotlib: pip install 'vimunet[benchmark]'"
    ) from error

PUBLISHED_TITLE = "published, other data and training"

_BEST, _OTHER = "#0072B2", "#7FA3BC"  # told apart by brightness too
_MEDALS = ("#E5B53B", "#BDC3C7", "#CE9263")
_CEILINGS = ((0, (5, 3)), (0, (1, 2)), (0, (5, 2, 1, 2)), (0, (9, 4)))
_INK = "#0a0b0c"  # a black that occurs nowhere else, to be replaced in pages
_MOST_POINTS = 600
_LONGEST_NAME = 34


def write_figure(
    result: dict[str, Any], folder: str | Path, published: Mapping[str, float] | None = None
) -> list[Path]:
    """Write `figure.png` (200 dpi) and `figure.svg`, whose text can be edited.

    A bar is the mean mSA of a method over the images, a line its central 95 % (bootstrap over
    images), a point one image. Sorted; 1, 2 and 3 mark the best.

    Args:
        result: What `vimunet.comparison.compare` returns.
        folder: Where to write; is made if need be.
        published: mSA of other people's methods on other images, by name. Drawn in a panel of
            its own with a title that says so.

    Returns:
        The two files.
    """
    figure = draw_figure(result, published)
    files = [Path(folder) / f"figure.{form}" for form in ("png", "svg")]
    for file in files:
        with replacing(file) as temporary:
            temporary.write_bytes(_saved(figure, file.suffix[1:], facecolor="white"))
    return files


def figure_svg(result: dict[str, Any], published: Mapping[str, float] | None = None) -> str:
    """Return the figure as an SVG element for a page, in the colour of the text around it.

    Args:
        result: What `vimunet.comparison.compare` returns.
        published: As in `write_figure`.

    Returns:
        The element, with a transparent background and without any reference to other files.
    """
    svg = _saved(draw_figure(result, published), "svg", transparent=True).decode()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1, flags=re.DOTALL)
    return svg.replace("<svg ", '<svg role="img" aria-label="Mean mSA of each method" ', 1)


def draw_figure(result: dict[str, Any], published: Mapping[str, float] | None = None) -> Figure:
    """Draw the figure; see `write_figure`."""
    rows = [len(result["methods"]), *([len(published)] if published else [])]
    height = 0.36 * sum(rows) + 0.75 * len(rows) + 0.6
    figure = Figure(figsize=(7.5, height), layout="constrained")
    panels = figure.subplots(
        len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": [count + 0.6 for count in rows]}
    )[:, 0]
    _draw_measured(panels[0], result)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=2,
            fontsize=8,
            frameon=False,
            labelcolor=_INK,
        )
    if published:
        _draw_published(panels[1], published)
    return figure


def _draw_measured(axes: Axes, result: dict[str, Any]) -> None:
    names = ranking(result)
    images = len(result["names"])
    for place, name in enumerate(names):
        scores = result["methods"][name]
        mean = number(scores["mean"]["mSA"])
        if math.isnan(mean):
            axes.text(0.01, place, "no score", va="center", color=_INK, fontsize=9)
            continue
        axes.barh(place, mean, height=0.66, color=_OTHER if place else _BEST, zorder=2)
        points = [number(image["mSA"]) for image in scores["images"]]
        if len(points) > 1 and len(points) * len(names) <= _MOST_POINTS:
            # steps of the golden ratio spread the points evenly without chance
            heights = [place + 0.44 * (i * 0.618 % 1 - 0.5) for i in range(len(points))]
            axes.scatter(
                *(points, heights),
                s=9,
                color="white",
                edgecolors=_INK,
                linewidths=0.6,
                alpha=0.75,
                zorder=3,
                label="one image" if not place else None,
            )
        low, high = map(number, scores["confidence"]["mSA"])
        text = score_text(mean)
        if images > 1 and not math.isnan(low):
            axes.plot(
                [low, high],
                [place, place],
                color=_INK,
                lw=2,
                zorder=4,
                label="95 % interval of the mean" if not place else None,
            )
            text += f"  ({score_text(low, 2)}–{score_text(high, 2)})"
        _annotate(axes, place, text, medal=place if len(names) > 1 else None)
    for style, (name, ceiling) in zip(
        _CEILINGS * len(result["ceilings"]), result["ceilings"].items(), strict=False
    ):
        axes.axvline(
            number(ceiling["mSA"]),
            color=_INK,
            lw=1,
            ls=style,
            zorder=1,
            label=_literal(f"ceiling of {name}: {score_text(ceiling['mSA'])}"),
        )
    _finish(axes, names, f"mSA, mean over {images} {plural(images, 'image')}")


def _draw_published(axes: Axes, published: Mapping[str, float]) -> None:
    names = sorted(published, key=lambda name: -published[name])
    for place, name in enumerate(names):
        axes.barh(
            place,
            published[name],
            height=0.66,
            color="none",
            edgecolor=_INK,
            alpha=0.6,
            hatch="////",
            linewidth=0.8,
        )
        _annotate(axes, place, score_text(published[name]))
    _finish(axes, names, "mSA as published")
    axes.set_title(PUBLISHED_TITLE, loc="left", fontsize=9, style="italic", color=_INK)


def _annotate(axes: Axes, place: int, text: str, medal: int | None = None) -> None:
    """Write the score of a bar at the right, and a medal for the first three."""
    across = axes.get_yaxis_transform()
    axes.text(1.06, place, text, transform=across, va="center", fontsize=9, color=_INK)
    if medal is None or medal >= len(_MEDALS):
        return
    axes.text(
        *(1.025, place, str(medal + 1)),
        transform=across,
        ha="center",
        va="center",
        fontsize=7.5,
        fontweight="bold",
        color="black",
        bbox={
            "boxstyle": "circle,pad=0.22",
            "facecolor": _MEDALS[medal],
            "edgecolor": "#6b6b6b",
            "linewidth": 0.6,
        },
    )


def _finish(axes: Axes, names: list[str], title: str) -> None:
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6), yticks=range(len(names)))
    axes.set_yticklabels([_literal(_short(name)) for name in names], fontsize=10, color=_INK)
    axes.set_xlabel(title, fontsize=9, color=_INK)
    axes.tick_params(axis="x", colors=_INK, labelsize=8, length=3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_INK, alpha=0.12, lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_INK)


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _literal(text: str) -> str:
    """Keep matplotlib from reading `$` as mathematics, and `_` first in a label as hidden."""
    return printable(text).replace("$", r"\$")


def _saved(figure: Figure, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vimunet"}):
        figure.savefig(
            content,
            format=form,
            dpi=200,
            metadata={"Date": None} if form == "svg" else None,
            **options,
        )
    return content.getvalue()
