"""What a comparison says, in words: who is best, and what each method gets wrong.

Text in plain characters, from the dictionary of `vimunet.comparison.compare`; nothing is escaped
for a format here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vimunet.messages import some_of

FEW_IMAGES = 6
"""With fewer, a method may win on each image by chance: p = 2 * 0.5**5 > 0.05."""

ADVICE = {
    "merged": "neighbours are joined. Separate more: a higher threshold for seeds, a lower one for "
    "boundaries, a smaller expected diameter, or more touching objects among the training images.",
    "split": "objects are cut into pieces. Separate less: fewer seeds by more smoothing or a "
    "larger distance between them, or a larger expected diameter.",
    "missed": "objects are not seen. Lower the threshold of the foreground (or probability) and "
    "the smallest allowed size, or train with images that look like these.",
    "inexact": "objects are seen, but their outlines are off. See in the pictures whether they are "
    "too wide or too narrow, and move the threshold of the foreground accordingly.",
    "false": "things are found that are not in the labels. See first whether they are objects "
    "that nobody labelled; if not, raise the threshold of the foreground or the smallest size.",
}
"""What helps against each kind of error, whatever the tool."""

_ALL_FOUND = 0.95
_SECOND_KIND = 0.3
_WEAK_SIZE = 0.1
_FEW_OBJECTS = 10


def printable(text: str) -> str:
    r"""Replace what a file name may hold and a document may not: control signs, broken Unicode.

    Examples:
        >>> printable("cell\n\u202e1"), printable("Zellen, 2 µm")
        ('cell��1', 'Zellen, 2 µm')
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def number(value: float | None) -> float:
    """Return a score, nan if it is not defined: None once it went through JSON."""
    return math.nan if value is None else float(value)


def score_text(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Write a score.

    Examples:
        >>> score_text(0.41249), score_text(None), score_text(-0.03, sign=True)
        ('0.412', 'n/a', '−0.030')
    """
    value = number(value)
    if math.isnan(value):
        return "n/a"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def p_text(p: float) -> str:
    """Write the p of a test.

    Examples:
        >>> p_text(0.0314), p_text(0.0001)
        ('p = 0.031', 'p < 0.001')
    """
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def interval_text(ends: Sequence[float | None], sign: bool = False) -> str:
    """Write an interval.

    Examples:
        >>> interval_text([0.1, 0.25]), interval_text([-0.1, 0.02], sign=True)
        ('0.100 to 0.250', '−0.100 to +0.020')
    """
    low, high = (score_text(end, sign=sign) for end in ends)
    return low if low == high == "n/a" else f"{low} to {high}"


def ranking(result: dict[str, Any]) -> list[str]:
    """List the methods, the highest mean mSA first and those without a score last."""

    def key(name: str) -> tuple[bool, float, bool]:
        score = number(result["methods"][name]["mean"]["mSA"])
        return math.isnan(score), -score, name != result["best"]

    return sorted(result["methods"], key=key)


def is_certain(result: dict[str, Any], name: str) -> bool:
    """Tell whether a method differs from the best by more than the chance of the images."""
    against = result["methods"][name]["against_best"]
    return against is not None and against["p"] < 0.05


def headline(result: dict[str, Any]) -> list[str]:
    """Say who is best, by how much, and whether the difference is more than chance.

    Args:
        result: What `compare` returns.

    Returns:
        The sentences; the first is the result, the others say how sure it is.
    """
    images = len(result["names"])
    best, *others = ranking(result)
    scores = result["methods"][best]
    mean = number(scores["mean"]["mSA"])
    if math.isnan(mean):
        return ["No method has a score: mSA is not defined for any image."]
    reached = f"mean mSA {score_text(mean)} over {_counted(images, 'image')}"
    if images > 1:
        reached += f" (95 % interval {interval_text(scores['confidence']['mSA'])})"
    name = printable(best)
    if not others:
        sentences = [f"{name}: {reached}."]
    elif all(is_certain(result, other) for other in others):
        sentences = [f"{name} segments best: {reached}."]
    else:
        sentences = [f"{name} scores highest, but not beyond chance: {reached}."]
    if others:
        sentences += _lead(result, others)
    if images == 1:
        sentences.append("One image does not tell how others would come out.")
    elif images < FEW_IMAGES:
        sentences.append(
            f"With fewer than {FEW_IMAGES} images, no difference can be told from chance, and the "
            "intervals are too narrow."
        )
    return sentences


def _lead(result: dict[str, Any], others: list[str]) -> list[str]:
    """Compare the best with the next one, and name all that may be as good."""
    name = printable(others[0])
    against = result["methods"][others[0]]["against_best"]
    difference = math.nan if against is None else -number(against["difference"])
    if math.isnan(difference):
        return [f"{name} cannot be compared with it."]
    if difference == 0:
        return [f"{name} scores the same."]
    lead = f"It lies {score_text(difference)} above {name}"
    if len(result["names"]) < FEW_IMAGES:
        return [f"{lead}."]
    low, high = (-number(end) for end in reversed(against["confidence"]))
    if is_certain(result, others[0]):
        text = interval_text([low, high])
        sentences = [f"{lead} ({text}); that is more than chance, {p_text(against['p'])}."]
    else:
        text = interval_text([low, high], sign=True)
        sentences = [f"{lead} ({text}), which may be chance, {p_text(against['p'])}."]
    equal = [printable(other) for other in others[1:] if not is_certain(result, other)]
    if equal:
        sentences.append(f"Not told apart from it either: {some_of(equal)}.")
    return sentences


def errors_of(total: Mapping[str, int]) -> dict[str, int]:
    """Count the errors of a method by kind, the most frequent first."""
    counts = {kind: total[kind] for kind in ADVICE}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def diagnosis(scores: Mapping[str, Any]) -> list[str]:
    """Say what a method gets wrong and what may help.

    Args:
        scores: The entry of a method in `methods`.

    Returns:
        Sentences: the most frequent errors, what helps against them, and the size of objects
        that is found least.
    """
    total = scores["total"]
    errors = errors_of(total)
    wrong = sum(errors.values())
    if not total["objects"] and not wrong:
        return ["No objects in the labels, none predicted."]
    if not wrong:
        return ["Every object is found, and nothing else."]
    (first, most), (second, next_most), *_ = errors.items()
    found = total["found"] / total["objects"] if total["objects"] else 0.0
    if found >= _ALL_FOUND and wrong < (1 - _ALL_FOUND) * total["objects"] * 2:
        sentences = [
            f"Finds nearly everything. Most frequent of its {_counted(wrong, 'error')}: "
            f"{_NOUNS[first]} ({most})."
        ]
    elif most > wrong / 2:
        sentences = [f"Mostly {_NOUNS[first]}: {most} of {_counted(wrong, 'error')}."]
    else:
        sentences = [
            f"Most often {_NOUNS[first]} ({most} of {_counted(wrong, 'error')}), "
            f"then {_NOUNS[second]} ({next_most})."
        ]
    kinds = [first, second] if next_most >= _SECOND_KIND * wrong else [first]
    sentences += [f"{kind.capitalize()}: {ADVICE[kind]}" for kind in kinds]
    return sentences + _weak_size(scores)


_NOUNS = {
    "merged": "merged objects",
    "split": "split objects",
    "missed": "missed objects",
    "inexact": "inexact outlines",
    "false": "false objects",
}


def _weak_size(scores: Mapping[str, Any]) -> list[str]:
    """Name the size of objects of which clearly fewer are found than of all."""
    bins = [size for size in scores["by_size"] if size["objects"] >= _FEW_OBJECTS]
    total = scores["total"]
    if len(bins) < 2 or not total["objects"]:
        return []
    weakest = min(bins, key=lambda size: size["found"] / size["objects"])
    share, overall = weakest["found"] / weakest["objects"], total["found"] / total["objects"]
    if share > overall - _WEAK_SIZE:
        return []
    return [
        f"Weakest with objects of {size_text(weakest)} pixels: {share:.0%} of them are found, "
        f"{overall:.0%} of all."
    ]


def size_text(size: Mapping[str, Any]) -> str:
    """Write the range of areas of a bin.

    Examples:
        >>> size_text({"area_from": 20, "area_to": 1100})
        '20 to 1,100'
    """
    return f"{size['area_from']:,.0f} to {size['area_to']:,.0f}"


def plural(count: int, noun: str) -> str:
    """Write a noun as its number wants it."""
    return noun if count == 1 else f"{noun}s"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {plural(count, noun)}"
