"""The tables and bars of the report of a comparison, as pieces of HTML."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vimunet.comparison.figure import PUBLISHED_TITLE, figure_svg
from vimunet.comparison.sentences import (
    FEW_IMAGES,
    diagnosis,
    interval_text,
    is_certain,
    number,
    p_text,
    plural,
    printable,
    ranking,
    score_text,
    size_text,
)

FATES = {
    "found": "matched",
    "inexact": "seen, but the outline is too far off",
    "split": "cut into pieces",
    "merged": "joined with a neighbour",
    "missed": "not seen",
    "false": "nothing of the kind in the labels",
}
"""What becomes of objects, in the order of the bars."""

_SCORES = (
    ("mSA", True, "mean over IoU thresholds 0.5 to 0.95 of TP / (TP + FP + FN)"),
    ("SA50", True, "TP / (TP + FP + FN) at IoU 0.5: objects roughly right"),
    ("SA75", True, "the same at IoU 0.75: outlines good"),
    ("F1", True, "2 TP / (2 TP + FP + FN) at the IoU threshold of the settings"),
    ("PQ", True, "panoptic quality: F1 times the mean IoU of the matched objects"),
    ("VI_split", False, "variation of information by splitting objects, bits per pixel"),
    ("VI_merge", False, "variation of information by merging objects, bits per pixel"),
    ("ARE", False, "adapted Rand error: pairs of pixels that are wrongly together or apart"),
)
_WORST_IMAGES = 3
_WIDE_ENOUGH = 0.06


def as_html(value: object) -> str:
    """Make any text harmless inside an element or a quoted attribute."""
    return html.escape(printable(str(value)))


def write_scores(result: dict[str, Any], published: Mapping[str, float] | None) -> Iterator[str]:
    """Write the section with the figure, the ceilings and the table of all scores."""
    images = len(result["names"])
    yield '<section id="scores"><h2>Scores</h2><figure>'
    yield f'<div class="wide">{figure_svg(result, published)}</div>'
    yield (
        f"<figcaption>Bars: mean mSA over {images} {plural(images, 'image')}. Lines: how "
        "uncertain the mean is (95 %, bootstrap; too short for few images). 1, 2, 3: the best."
    )
    if published:
        yield f" Below, {PUBLISHED_TITLE}: not to be compared with the bars above."
    yield "</figcaption></figure>"
    if result["ceilings"]:
        listed = "; ".join(
            f"{as_html(title)} {score_text(top['mSA'])} ({interval_text(top['confidence'])})"
            for title, top in result["ceilings"].items()
        )
        used = min(top["images"] for top in result["ceilings"].values())
        yield (
            "<p>Ceilings, the mSA of perfect maps once objects are read from them, on "
            f"{used:,} of {images:,} {plural(images, 'image')}: {listed}. Methods that work "
            "without such maps are not bound by them.</p>"
        )
    headers = "".join(
        f'<th scope="col" title="{meaning}">{key.replace("_", " ")} {"↑" if up else "↓"}</th>'
        for key, up, meaning in _SCORES
    )
    methods = result["methods"].values()
    timed = any(method["seconds_per_image"] is not None for method in methods)
    of_time = '<th scope="col">Seconds<br>per image</th>' if timed else ""
    yield (
        f'<div class="wide"><table><thead><tr><th scope="col" class="name">Method</th>{headers}'
        '<th scope="col">TP</th><th scope="col">FP</th><th scope="col">FN</th>'
        f"{of_time}</tr></thead><tbody>"
    )
    best = {
        key: (max if up else min)(values, default=math.nan)
        for key, up, _ in _SCORES
        for values in [
            [
                number(method["mean"][key])
                for method in methods
                if not math.isnan(number(method["mean"][key]))
            ]
        ]
    }
    for name in ranking(result):
        yield _score_row(name, result["methods"][name], best, images, timed)
    meanings = "".join(
        f"<dt>{key.replace('_', ' ')}</dt><dd>{meaning}; {'1' if up else '0'} is best</dd>"
        for key, up, meaning in _SCORES
    )
    yield (
        "</tbody></table></div><p class='note'>Each score is the mean over images, with its 95 % "
        "interval below; bold is the best of a column. TP, FP and FN count objects in all images "
        f"at IoU {result['settings']['threshold']:g}.</p><details><summary>What the columns mean"
        f"</summary><dl>{meanings}<dt>TP, FP, FN</dt><dd>predicted objects that match one of the "
        "labels, predicted ones that match none, labelled ones that none matches</dd></dl>"
        "</details></section>"
    )


def _score_row(
    name: str, method: dict[str, Any], best: dict[str, float], images: int, timed: bool
) -> str:
    cells = []
    for key, _, _ in _SCORES:
        mean = number(method["mean"][key])
        text = score_text(mean)
        text = f"<b>{text}</b>" if mean == best[key] else text
        if images > 1 and not math.isnan(mean):
            low, high = method["confidence"][key]
            text += f"<small>{score_text(low)}–{score_text(high)}</small>"
        cells.append(f'<td data-score="{key}">{text}</td>')
    counts = "".join(f"<td>{method['total'][key]:,}</td>" for key in ("TP", "FP", "FN"))
    seconds = method["seconds_per_image"]
    of_time = f"<td>{'' if seconds is None else f'{seconds:.3g}'}</td>" if timed else ""
    problems = len(method["problems"])
    warning = f' <span class="warn">{problems} {plural(problems, "problem")}</span>'
    return (
        f'<tr><th scope="row" class="name">{as_html(name)}<small>{as_html(method["tool"])}'
        f"{warning if problems else ''}</small></th>"
        f"{''.join(cells)}{counts}{of_time}</tr>"
    )


def write_differences(result: dict[str, Any]) -> Iterator[str]:
    """Compare each method with the best on the same images."""
    others = [name for name in ranking(result) if result["methods"][name]["against_best"]]
    if not others:
        return
    best = as_html(result["best"])
    against = {name: result["methods"][name]["against_best"] for name in others}
    ends = [number(end) for entry in against.values() for end in entry["confidence"]]
    ends = [end for end in ends if not math.isnan(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    scale = 100 / (high - low) if high > low else 0.0
    yield (
        f'<section id="differences"><h2>Differences from {best}</h2><p>mSA of the method minus '
        f"mSA of {best}, on the same images. p is the chance of a difference as large if both were "
        "equally good (signs of the differences flipped); below 0.05 counts as more than chance, "
        f"and fewer than {FEW_IMAGES} images cannot reach that. With many methods, one in twenty "
        "is chance nevertheless. Frames of one film or slices of one stack count as more images "
        "than they are, and what another training would change is not in it.</p>"
        '<div class="wide"><table><thead><tr>'
        '<th scope="col" class="name">Method</th><th scope="col">Difference</th>'
        '<th scope="col">95 % interval</th><th scope="col" class="plot">'
        '<span class="sr">Interval as a picture; the line is 0</span></th>'
        '<th scope="col">Better on</th><th scope="col">Equal on</th><th scope="col">Worse on</th>'
        '<th scope="col" class="name">More than chance</th></tr></thead><tbody>'
    )
    for name, entry in against.items():
        start, middle, end = map(
            number, (entry["confidence"][0], entry["difference"], entry["confidence"][1])
        )
        mark = ""
        if not math.isnan(start):
            mark = (
                f'<span class="zero" style="left:{-low * scale:.2f}%"></span>'
                f'<span class="span" style="left:{(start - low) * scale:.2f}%;'
                f'width:{(end - start) * scale:.2f}%"></span>'
                f'<span class="dot" style="left:{(middle - low) * scale:.2f}%"></span>'
            )
        yield (
            f'<tr><th scope="row" class="name">{as_html(name)}</th>'
            f'<td data-score="difference">{score_text(entry["difference"], sign=True)}</td>'
            f"<td>{interval_text(entry['confidence'], sign=True)}</td>"
            f'<td class="plot"><div class="forest" aria-hidden="true">{mark}</div></td>'
            f"<td>{entry['wins']}</td><td>{entry['ties']}</td><td>{entry['losses']}</td>"
            f'<td class="name">{"yes" if is_certain(result, name) else "may be chance"}, '
            f"{as_html(p_text(entry['p']))}</td></tr>"
        )
    yield "</tbody></table></div></section>"


def write_errors(result: dict[str, Any], chosen: Mapping[str, str]) -> Iterator[str]:
    """Show what became of the objects, and say what may help."""
    legend = "".join(
        f'<li><i class="{fate}"></i><b>{fate}</b> {meaning}</li>' for fate, meaning in FATES.items()
    )
    yield (
        '<section id="errors"><h2>What goes wrong</h2><p>What became of each labelled object, at '
        f"IoU {result['settings']['threshold']:g}; set apart at the end, objects that were found "
        f'where there is none.</p><ul class="legend">{legend}</ul><div class="bars">'
    )
    longest = max(
        [1, *(m["total"]["objects"] + m["total"]["false"] for m in result["methods"].values())]
    )
    for name in ranking(result):
        total = result["methods"][name]["total"]
        share = f"{total['found']:,} of {total['objects']:,} found"
        yield f'<div class="label">{as_html(name)}<small>{share}</small></div>'
        yield _bar(total, (*list(FATES)[:-1], "false"), longest)
    yield (
        '</div><p class="note">If you change settings of a method now, choose them on other images '
        "than these, which would score too well afterwards. For models of vimunet, "
        '<code>vimunet tune</code> does so.</p><div class="cards">'
    )
    places = {name: i for i, name in enumerate(chosen)}
    for name in ranking(result):
        yield _card(name, result["methods"][name], places)
    yield "</div></section>"


def _bar(counts: Mapping[str, int], fates: Iterable[str], whole: int) -> str:
    """Stack counts; a number is written where there is room for it."""
    pieces, words = [], []
    for fate in fates:
        count = counts[fate]
        words.append(f"{count} {fate}")
        if count:
            text = f"{count:,}" if count / whole >= _WIDE_ENOUGH else ""
            pieces.append(
                f'<span class="{fate}" style="width:{100 * count / whole:.3f}%" '
                f'title="{count:,} {fate}">{text}</span>'
            )
    return f'<div class="bar" role="img" aria-label="{", ".join(words)}">{"".join(pieces)}</div>'


def _card(name: str, method: dict[str, Any], places: Mapping[str, int]) -> str:
    fates = list(FATES)[:-1]
    sizes = "".join(
        f'<div class="label">{size_text(size)}<small>{size["objects"]:,} objects</small></div>'
        f"{_bar(size, fates, size['objects'])}"
        for size in method["by_size"]
        if size["objects"]
    )
    if sizes:
        sizes = f'<h4>By size of the object, in pixels</h4><div class="bars">{sizes}</div>'
    images = sorted(
        (image for image in method["images"] if not math.isnan(number(image["mSA"]))),
        key=lambda image: number(image["mSA"]),
    )
    worst = "".join(
        f"<li>{_linked(image['name'], places)} <b>{score_text(image['mSA'])}</b>, "
        f"{image['found']} of {image['objects']} found, {image['false']} false</li>"
        for image in images[:_WORST_IMAGES]
    )
    sentences = diagnosis(method)
    return (
        f"<article><h3>{as_html(name)}</h3><p><b>{as_html(sentences[0])}</b></p>"
        f"{''.join(f'<p>{as_html(sentence)}</p>' for sentence in sentences[1:])}"
        f"{sizes}<h4>Where it is worst (mSA)</h4>"
        f'<ul class="plain">{worst}</ul></article>'
    )


def _linked(name: str, places: Mapping[str, int]) -> str:
    if name not in places:
        return as_html(name)
    return f'<a href="#picture-{places[name]}">{as_html(name)}</a>'
