"""The report of a comparison: its numbers are those of the result, and names are only text."""

import base64
import gc
import io
import json
import math
import shlex
import sys
from html.parser import HTMLParser
from importlib import util
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image

pytest.importorskip("matplotlib")

sys.path.insert(0, str(Path(__file__).parent))
from comparison_results import Arrays, make_result

from vimunet.comparison.figure import PUBLISHED_TITLE, figure_svg, write_figure
from vimunet.comparison.pictures import COLORS, Painter, Picture, choose_images
from vimunet.comparison.report import MOST_IMAGES, write_report
from vimunet.comparison.sentences import (
    diagnosis,
    headline,
    is_certain,
    printable,
    ranking,
    score_text,
)

VOID = {"meta", "img", "br", "input", "hr", "link"}
SVG_NAMESPACE = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.rows = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), f"doubled attribute in <{tag}>"
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([attributes.get("data-score"), ""])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.texts.append(data)
        if self.open and self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1][1] += "|" + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.texts)


def decoded(source):
    content = base64.b64decode(source.removeprefix("data:image/webp;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) / 255


def cells(rng, shape=(120, 160), count=12):
    """Discs that do not touch."""
    labels = np.zeros(shape, np.int32)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for i in range(count):
        center = 20 + 32 * (i // 4), 20 + 38 * (i % 4)
        labels[(y - center[0]) ** 2 + (x - center[1]) ** 2 <= rng.integers(4, 13) ** 2] = i + 1
    return labels


def without(labels, *numbers):
    return np.where(np.isin(labels, numbers), 0, labels)


def shifted(labels, pixels):
    return np.roll(labels, pixels, axis=1)


@pytest.fixture
def scene(tmp_path, rng):
    """Folders of labels and images, and predictions of three methods."""
    labels = {f"cell {i}": cells(rng) for i in range(7)}
    for folder in ("labels", "images"):
        (tmp_path / folder).mkdir()
    for name, truth in labels.items():
        tifffile.imwrite(tmp_path / "labels" / f"{name}.tif", truth.astype(np.uint16))
        image = (truth > 0) * 20_000 + rng.integers(0, 3000, truth.shape)
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", image.astype(np.uint16))
    methods = {
        "good": {name: without(truth, 1) for name, truth in labels.items()},
        "shifted": {name: shifted(truth, 3) for name, truth in labels.items()},
        "late": {name: shifted(truth, 8) for name, truth in list(labels.items())[:-1]},
    }
    return tmp_path, labels, methods


def report(folder, labels, methods, result=None, **options):
    """Write the report of a scene and parse it."""
    result = result or make_result(labels, methods)
    page = folder / "report.html"
    options = {"images_folder": folder / "images", "most_images": 2, **options}
    predictions = {name: Arrays(images) for name, images in methods.items()}
    write_report(result, page, labels_folder=folder / "labels", predictions=predictions, **options)
    return result, Page(page.read_text(encoding="utf-8"))


def test_page_needs_nothing_else(scene):
    _, page = report(*scene)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "audio"}
    policy = page.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert attributes.get("src", "data:image/").startswith("data:image/webp;base64,"[:11])
        for name in ("href", "xlink:href"):
            if name in attributes:
                assert attributes[name][0] == "#"
                assert attributes[name][1:] in ids
    raw = (scene[0] / "report.html").read_text(encoding="utf-8")
    assert "@import" not in raw
    assert raw.count("url(") == raw.count("url(#")  # clips of the figure


def test_pictures_and_bars_can_be_read_aloud(scene):
    _, page = report(*scene, most_images=7)
    pictures = page.all("img")
    assert len(pictures) == 7 * 2 * (1 + 3)
    for picture in pictures:
        assert picture["alt"]
        width, height = int(picture["width"]), int(picture["height"])
        assert decoded(picture["src"]).shape == (height, width, 3)
    bars = [bar["aria-label"] for bar in page.all("div") if bar.get("class") == "bar"]
    assert "77 found, 0 inexact, 0 split, 0 merged, 7 missed, 0 false" in bars


def test_numbers_are_those_of_the_result(scene):
    result, page = report(*scene)
    rows = {row[0][1].split("|")[1]: row for row in page.rows if row and "mSA" in row[1:2][0]}
    assert list(rows) == ranking(result)
    for method, row in rows.items():
        scores = result["methods"][method]
        shown = {key: text for key, text in row if key}
        assert list(shown) == ["mSA", "SA50", "SA75", "F1", "PQ", "VI_split", "VI_merge", "ARE"]
        for key, text in shown.items():
            low, high = (f"{end:.3f}" for end in scores["confidence"][key])
            assert text == f"|{scores['mean'][key]:.3f}|{low}–{high}"
        counts = [int(text[1:]) for key, text in row[9:12]]
        assert counts == [scores["total"][key] for key in ("TP", "FP", "FN")]
    differences = {row[0][1][1:]: row for row in page.rows if row and row[1][0] == "difference"}
    assert set(differences) == set(result["methods"]) - {"good"}
    for method, row in differences.items():
        against = result["methods"][method]["against_best"]
        assert row[1][1] == "|" + f"{against['difference']:+.3f}".replace("-", "−")
        assert [int(row[i][1][1:]) for i in (4, 5, 6)] == [
            against[key] for key in ("wins", "ties", "losses")
        ]


def test_missing_files_stand_at_the_top(scene):
    _, page = report(*scene)
    assert "count as if nothing had been found" in page.text
    assert "no file (1): cell 6" in page.text
    assert "predictions without labels" not in page.text
    assert "1 problem" in page.text


def test_predictions_without_labels_are_named(scene):
    folder, labels, methods = scene
    result = make_result(labels, methods)
    result["methods"]["good"]["extra"] = ["cell_0", "cell_1"]
    _, page = report(folder, labels, methods, result)
    assert "predictions without labels of their name, not scored (2): cell_0, cell_1" in page.text


def test_without_problems_none_are_listed(scene):
    folder, labels, methods = scene
    del methods["late"]
    _, page = report(folder, labels, methods)
    assert "Problems" not in page.text


def test_names_are_only_text(tmp_path, rng):
    evil = "a\"><img src=x onerror=alert(1)>'&amp; \u202e"
    method = "</style><script>alert('m')</script>\" onclick=\"x"
    for folder in ("labels", "images"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / f"{evil}.tif", cells(rng).astype(np.uint16))
    labels = {evil: cells(rng)}
    methods = {method: labels, "$x_1^{2}$ \\frac & <b>": {}}
    result = make_result(labels, methods)
    result["methods"][method]["folder"] = "'; rm \udcff <i>"
    result["methods"][method]["tool"] = "<tool>"
    result["ceilings"]["<u>maps</u> $a$"] = {"mSA": 0.9, "confidence": [0.8, 0.95], "images": 1}
    result["methods"][method]["problems"] = [{"name": evil, "problem": "<a href=//x>"}]
    _, page = report(tmp_path, labels, methods, result)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "b onclick", "u", "tool"})
    assert not any("onerror" in names or "onclick" in names for _, names in page.elements)
    assert all(picture["src"].startswith("data:") for picture in page.all("img"))
    assert evil[:-1] in page.text
    assert method in page.text
    assert "$x_1^{2}$ \\frac & <b>" in page.text


def page_of(folder, text):
    """A report with `text(place)` in each place where text comes from outside."""
    images, name, method = folder / text("images"), text("image"), text("method")
    labels = {name: cells(np.random.default_rng(0))}
    for parent in (folder / "labels", images):
        parent.mkdir(parents=True)
    tifffile.imwrite(folder / "labels" / f"{name}.tif", labels[name].astype(np.uint16))
    (images / f"{name}.tif").write_bytes(b"no picture")
    methods = {method: labels, text("second"): {}}
    result = make_result(
        labels,
        methods,
        ceilings={text("ceiling"): {"mSA": 0.9, "confidence": [0.8, 0.95], "images": 1}},
        tools={method: text("tool")},
        seconds={method: 0.1},
    )
    result["labels"] = text("labels")
    result["settings"]["protocol"] = text("protocol")
    result["methods"][method] |= {
        "folder": text("folder"),
        "notes": [{"name": text("noted"), "note": text("note")}],
        "extra": [text("extra")],
    }
    result["methods"][text("second")]["problems"] = [{"name": name, "problem": text("problem")}]
    options = {"published": {text("published"): 0.3}, "program": [text("program")]}
    return report(folder, labels, methods, result, images_folder=images, **options)[1]


def test_text_from_outside_changes_no_element(tmp_path):
    places = set()

    def harmless(place):
        places.add(place)
        return place

    def hostile(place):
        return f"<b onx={place}>\"'{{{{7*7}}}}&lt;\n\u202e"

    plain, page = page_of(tmp_path / "plain", harmless), page_of(tmp_path / "evil", hostile)
    for tag, attributes in plain.elements:
        assert not any(name.startswith("on") for name in attributes), tag
    assert [(tag, list(attributes)) for tag, attributes in page.elements] == [
        (tag, list(attributes)) for tag, attributes in plain.elements
    ]
    command = shlex.split(next(text for text in page.texts if "--overwrite" in text))
    for place in places - {"program"}:
        assert printable(hostile(place)) in page.text, place
    assert command[0] == printable(hostile("program"))
    shown = printable(f"Objects of {hostile('method')} in {hostile('image')} as outlines")
    assert shown in [picture["alt"] for picture in page.all("img")]
    raw = (tmp_path / "evil" / "report.html").read_text(encoding="utf-8")
    assert {sign for sign in raw if not sign.isprintable()} == {"\n"}


def test_scores_that_are_not_defined(tmp_path):
    (tmp_path / "labels").mkdir()
    empty = np.zeros((40, 50), np.uint16)
    tifffile.imwrite(tmp_path / "labels" / "empty.tif", empty)
    labels = {"empty": empty}
    methods = {
        "right": labels,
        "wrong": {"empty": np.pad(np.ones((5, 5), int), ((0, 35), (0, 45)))},
    }
    result = make_result(labels, methods)
    assert math.isnan(result["methods"]["right"]["mean"]["ARE"])
    through_json = json.loads(json.dumps(result).replace("NaN", "null"))
    for given in (result, through_json):
        _, page = report(tmp_path, labels, methods, given, images_folder=None)
        row = next(row for row in page.rows if row and row[0][1].startswith("|right"))
        assert [text for key, text in row if key in ("mSA", "ARE")] == ["|1.000", "|n/a"]
        assert "No objects in the labels, none predicted." in page.text
    for method in result["methods"].values():
        method["mean"]["mSA"] = math.nan
        method["images"][0]["mSA"] = math.nan
    _, page = report(tmp_path, labels, methods, result, images_folder=None)
    assert "No method has a score" in page.text
    assert "no score" in page.text


def test_ceilings_are_explained(scene):
    folder, labels, methods = scene
    ceilings = {
        "distance maps": {"mSA": 0.98, "confidence": [0.97, 0.99], "images": 1},
        "classes": {"mSA": 0.6, "confidence": [0.5, 0.7], "images": 1},
    }
    _, page = report(folder, labels, methods, make_result(labels, methods, ceilings))
    listed = "distance maps 0.980 (0.970 to 0.990); classes 0.600 (0.500 to 0.700)."
    assert listed in page.text
    _, page = report(folder, labels, methods)
    assert "Ceilings" not in page.text


def test_one_method_and_one_image(scene):
    folder, labels, methods = scene
    labels = dict([*labels.items()][:1])
    _, page = report(folder, labels, {"only": methods["shifted"]})
    assert "only: mean mSA" in page.text
    assert "One image does not tell" in page.text
    assert "differences" not in [names.get("id") for _, names in page.elements]
    _, page = report(folder, labels, {"a": methods["shifted"], "b": methods["good"]})
    assert "more than chance, p" not in page.text
    assert "may be chance" in page.text


def test_images_without_folder_or_with_another_size(scene):
    folder, labels, methods = scene
    _, page = report(folder, labels, methods, images_folder=None, most_images=7)
    assert len(page.all("img")) == 7 * (1 + 2 * 3)
    (folder / "images" / "cell 0.tif").unlink()
    tifffile.imwrite(folder / "images" / "cell 1.tif", np.zeros((12, 13), np.uint8))
    (folder / "images" / "cell 2.tif").write_bytes(b"no picture")
    _, page = report(folder, labels, methods, most_images=7)
    assert "There is no image of this name." in page.text
    assert "The image does not have the size of its labels, (120, 160)." in page.text
    assert "The image cannot be read" in page.text
    assert "Counted as empty: no file." in page.text
    assert len(page.all("img")) == 7 * 2 * (1 + 3) - 3


@pytest.mark.parametrize("shape", [(120, 160, 3), (3, 120, 160), (120, 160, 5)])
def test_channels_are_shown(scene, shape, rng):
    folder, labels, methods = scene
    image = rng.integers(0, 60_000, shape).astype(np.uint16)
    tifffile.imwrite(folder / "images" / "cell 0.tif", image, photometric="minisblack")
    labels = {"cell 0": labels["cell 0"]}
    _, page = report(folder, labels, {"shifted": methods["shifted"]})
    shown = [picture for picture in page.all("img") if picture["alt"] == "Image cell 0"]
    assert len(shown) == 1
    assert decoded(shown[0]["src"]).std() > 0.1


def test_no_pictures(scene):
    _, page = report(*scene, most_images=0)
    assert not page.all("img")
    assert "None were asked for." in page.text
    with pytest.raises(ValueError, match="`most_images` must not be negative, got -1"):
        report(*scene, most_images=-1)


def test_one_image_is_read_at_a_time(scene):
    folder, labels, methods = scene
    asked = []
    predictions = {
        name: Arrays({**methods["late"], **images}, asked=asked) for name, images in methods.items()
    }
    result = make_result(labels, methods)
    write_report(
        result,
        folder / "report.html",
        labels_folder=folder / "labels",
        predictions=predictions,
        most_images=3,
    )
    chosen = list(choose_images(result, 3))
    assert chosen[0] == asked[0]
    blocks = [name for i, name in enumerate(asked) if i == 0 or name != asked[i - 1]]
    assert blocks == chosen


def pictures_in_memory():
    return sum(type(thing) is Picture for thing in gc.get_objects())


def test_pictures_are_written_before_the_next_image_is_read(scene):
    folder, labels, methods = scene
    in_file, in_memory = [], []
    gc.collect()
    before = pictures_in_memory()

    class Watched(Arrays):
        def read(self, name, shape):
            (temporary,) = folder.glob(".*")
            in_file.append(temporary.read_text(encoding="utf-8").count('class="picture"'))
            in_memory.append(pictures_in_memory())
            return super().read(name, shape)

    good = {"good": methods["good"]}
    write_report(
        make_result(labels, good),
        folder / "report.html",
        folder / "images",
        labels_folder=folder / "labels",
        predictions={"good": Watched(methods["good"])},
        most_images=7,
    )
    assert len(in_file) == 7
    assert all(count >= place for place, count in enumerate(in_file))
    assert max(in_memory) - before <= 4, "two of the labels, two of a method"


def test_files_are_found_through_the_result(scene):
    folder, labels, methods = scene
    result = make_result(labels, {"good": methods["good"]})
    result["labels"] = str(folder / "labels")
    result["methods"]["good"]["folder"] = str(folder / "found")
    (folder / "found").mkdir()
    for name, found in methods["good"].items():
        tifffile.imwrite(folder / "found" / f"{name}.tif", found.astype(np.uint16))
    write_report(result, folder / "report.html", folder / "images")
    from_files = Page((folder / "report.html").read_text(encoding="utf-8"))
    _, given = report(folder, labels, {"good": methods["good"]}, result, most_images=12)
    assert [picture["src"] for picture in from_files.all("img")] == [
        picture["src"] for picture in given.all("img")
    ]


def test_report_is_written_completely_or_not_at_all(scene):
    folder, labels, methods = scene
    page = folder / "report.html"
    page.write_text("before")
    with pytest.raises(KeyError):
        write_report(
            make_result(labels, methods),
            page,
            labels_folder=folder / "labels",
            predictions={name: Arrays({}) for name in methods},
        )
    assert page.read_text() == "before"
    assert not list(folder.glob(".*"))


def test_command_repeats_the_comparison(scene):
    folder, labels, methods = scene
    result = make_result(labels, {"my net": methods["good"]}, seconds={"my net": 0.25})
    result["settings"] |= {"threshold": 0.7, "protocol": "published", "labelled_pixels_only": True}
    _, page = report(folder, labels, {"my net": methods["good"]}, result)
    command = next(text for text in page.texts if text.startswith("vimunet compare"))
    assert shlex.split(command) == [
        *("vimunet", "compare", "my net=predictions/my net", "--labels", "labels"),
        *("--images", str(folder / "images"), "--threshold", "0.7", "--protocol", "published"),
        *("--labelled-pixels-only", "--seconds", "my net=0.25", "--gallery", "2"),
        *("--output", str(folder), "--overwrite"),
    ]
    shown = {"my net": methods["good"]}
    _, page = report(folder, labels, shown, result, most_images=MOST_IMAGES)
    command = next(text for text in page.texts if text.startswith("vimunet compare"))
    assert "--gallery" not in command


def test_seconds_have_a_column_only_if_somebody_knows_them(scene):
    folder, labels, methods = scene
    _, page = report(folder, labels, methods)
    assert "per image" not in page.texts
    result = make_result(labels, methods, seconds={"good": 0.25})
    _, page = report(folder, labels, methods, result)
    assert "per image" in page.texts and "0.25" in page.texts


def test_large_report_stays_small(tmp_path, rng):
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    labels = {}
    for i in range(4):
        labels[f"{i}"] = cells(rng, (520, 704))
        tifffile.imwrite(tmp_path / "labels" / f"{i}.tif", labels[f"{i}"].astype(np.uint16))
        noise = rng.integers(0, 255, (520, 704)).astype(np.uint8)  # compresses worst
        tifffile.imwrite(tmp_path / "images" / f"{i}.tif", noise)
    methods = {f"method {i}": labels for i in range(5)}
    _, page = report(tmp_path, labels, methods, most_images=4)
    assert len(page.all("img")) == 4 * 2 * (1 + 5)
    assert (tmp_path / "report.html").stat().st_size < 8_000_000


def test_huge_images_are_shown_smaller(tmp_path):
    for folder in ("labels", "images"):
        (tmp_path / folder).mkdir()
    truth = np.zeros((1501, 2003), np.uint16)
    truth[:750, 1000:] = 7
    tifffile.imwrite(tmp_path / "labels" / "huge.tif", truth)
    tifffile.imwrite(tmp_path / "images" / "huge.tif", np.where(truth, 60_000, 10).astype("u2"))
    labels = {"huge": truth}
    _, page = report(tmp_path, labels, {"method": labels})
    pictures = {picture["alt"]: decoded(picture["src"]) for picture in page.all("img")}
    image, errors = pictures["Image huge"], pictures["Errors of method in huge in colour"]
    assert image.shape == (375, 501, 3)  # every fourth pixel of 1501 x 2003
    middle = image.shape[0] // 2, image.shape[1] // 2
    assert image[: middle[0] - 12, middle[1] + 12 :].min() > 0.95
    assert image[middle[0] + 12 :].max() < 0.05
    found = errors[20 : middle[0] - 20, middle[1] + 20 : -20].mean(axis=(0, 1))
    assert np.allclose(found, 0.3 * 0.55 + 0.7 * rgb("found"), atol=0.03)


def rgb(outcome):
    return np.array([int(COLORS[outcome][i : i + 2], 16) for i in (1, 3, 5)]) / 255


def test_errors_have_the_colour_of_the_legend(tmp_path):
    """Five squares: found, missed, split, and two merged; one predicted square where none is."""
    truth, found = np.zeros((2, 200, 400), np.uint16)
    squares = {
        "found": (20, 20),
        "missed": (20, 100),
        "split": (20, 180),
        "merged": (20, 260),
        "false": (120, 20),
    }
    for i, (outcome, (y, x)) in enumerate(squares.items(), start=1):
        if outcome != "false":
            truth[y : y + 60, x : x + 60] = i
        if outcome != "missed":
            found[y : y + 60, x : x + 60] = i
    truth[20:80, 322:382] = 9
    found[20:80, 260:382] = 4
    found[20:80, 180:186] = 0
    found[20:80, 186:210] = 20
    found[20:80, 210:234] = 21
    found[20:80, 234:240] = 0
    result = make_result({"a": truth}, {"method": {"a": found}})
    painter = Painter(result, Arrays({"a": truth}), {"method": Arrays({"a": found})}, None, 1)
    labels, method = painter.panels("a")
    assert [panel.title for panel in (labels, method)] == ["labels", "method"]
    errors = decoded(method.pictures[-1].source)
    for outcome, (y, x) in squares.items():
        inside = errors[y + 8 : y + 22, x + 8 : x + 22].mean(axis=(0, 1))
        assert np.allclose(inside, 0.7 * rgb(outcome), atol=0.03), outcome
    assert errors[110:118, 200:].max() < 0.03
    second = errors[28:52, 340:364].mean(axis=(0, 1))
    assert np.allclose(second, 0.7 * rgb("merged"), atol=0.03)


def hand_made(scores, **against):
    """A result with given mSA of each method on each image, in what the sentences read."""
    count = len(next(iter(scores.values())))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    return {
        "names": [f"image {i}" for i in range(count)],
        "best": max(means, key=means.get),
        "methods": {
            name: {
                "mean": {"mSA": means[name]},
                "confidence": {"mSA": [means[name] - 0.05, means[name] + 0.05]},
                "images": [{"mSA": value} for value in values],
                "against_best": against.get(name),
            }
            for name, values in scores.items()
        },
    }


def difference(low, high, p):
    return {"difference": (low + high) / 2, "confidence": [low, high], "p": p}


def test_headline_tells_chance_from_difference():
    scores = {"a": [0.5] * 8, "b": [0.4] * 8, "c": [0.3] * 8}
    sure = hand_made(scores, b=difference(-0.15, -0.05, 0.008), c=difference(-0.25, -0.15, 1e-4))
    assert headline(sure) == [
        "a segments best: mean mSA 0.500 over 8 images (95 % interval 0.450 to 0.550).",
        "It lies 0.100 above b (0.050 to 0.150); that is more than chance, p = 0.008.",
    ]
    unsure = hand_made(scores, b=difference(-0.25, 0.05, 0.25), c=difference(-0.45, 0.05, 0.125))
    assert headline(unsure) == [
        "a scores highest, but not beyond chance: "
        "mean mSA 0.500 over 8 images (95 % interval 0.450 to 0.550).",
        "It lies 0.100 above b (−0.050 to +0.250), which may be chance, p = 0.250.",
        "Not told apart from it either: c.",
    ]


def test_few_images_show_no_difference():
    scores = {"a": [0.5] * 5, "b": [0.4] * 5}
    result = hand_made(scores, b=difference(-0.15, -0.05, 0.0625))
    assert not is_certain(result, "b")
    assert headline(result)[0].startswith("a scores highest, but not beyond chance")
    assert "With fewer than 6 images, no difference can be told from chance" in headline(result)[-1]
    six = hand_made(
        {name: [*values, values[0]] for name, values in scores.items()},
        b=difference(-0.15, -0.05, 0.03125),
    )
    assert is_certain(six, "b")
    assert not is_certain(six, "a")


def test_equal_scores_are_called_equal():
    scores = {"a": [0.5] * 8, "b": [0.5] * 8}
    result = hand_made(scores, b=difference(0.0, 0.0, 1.0))
    assert headline(result)[1] == "b scores the same."


def test_chosen_images_and_why():
    result = hand_made(
        {
            "a": [0.9, 0.2, 0.5, 0.6, 0.7, 0.8, 0.55],
            "b": [0.8, 0.1, 0.5, 0.0, 0.6, 0.5, 0.50],
        }
    )
    assert choose_images(result, 6) == {
        "image 1": "the worst of a",
        "image 3": "methods disagree: mSA 0.000 to 0.600",
        "image 0": "the best of a",
        "image 2": "among the worst of a",
        "image 5": "methods disagree: mSA 0.500 to 0.800",
        "image 6": "among the worst of a",
    }
    assert list(choose_images(result, 99)) != []
    assert len(choose_images(result, 99)) == 7
    assert choose_images(result, 0) == {}


def counts(objects, by_size=(), **outcomes):
    total = dict.fromkeys(("found", "inexact", "split", "merged", "missed", "false"), 0) | outcomes
    return {"total": {"objects": objects, **total}, "by_size": list(by_size)}


def test_diagnosis_names_the_errors_and_what_helps():
    first, *others = diagnosis(counts(100, found=40, merged=50, missed=10))
    assert first == "Mostly merged objects: 50 of 60 errors."
    assert [text.split(":")[0] for text in others] == ["Merged"]
    first, *others = diagnosis(counts(100, found=30, missed=35, split=35, false=20))
    assert first == "Most often split objects (35 of 90 errors), then missed objects (35)."
    assert [text.split(":")[0] for text in others] == ["Split", "Missed"]
    assert diagnosis(counts(10, found=10)) == ["Every object is found, and nothing else."]
    nearly = diagnosis(counts(100, found=98, inexact=2))
    assert (
        nearly[0] == "Finds nearly everything. Most frequent of its 2 errors: inexact outlines (2)."
    )
    assert "Mostly false objects: 3 of 3 errors." in diagnosis(counts(0, false=3))


def test_diagnosis_names_the_size_that_is_found_least():
    def bins(*found):
        return [
            {"area_from": 100 * i, "area_to": 100 * i + 99, "objects": 50, "found": n}
            for i, n in enumerate(found)
        ]

    weak = diagnosis(counts(100, bins(10, 45), found=55, missed=45))
    assert weak[-1] == "Weakest with objects of 0 to 99 pixels: 20% of them are found, 55% of all."
    even = diagnosis(counts(100, bins(26, 29), found=55, missed=45))
    assert not any("Weakest" in sentence for sentence in even)


def test_figure_files(scene, tmp_path):
    _, labels, methods = scene
    ceilings = {"foreground and boundary": {"mSA": 0.97, "confidence": [0.96, 0.98], "images": 2}}
    result = make_result(labels, methods, ceilings)
    png, svg = write_figure(result, tmp_path / "figures")
    assert (png.name, svg.name) == ("figure.png", "figure.svg")
    picture = Image.open(png)
    assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == 255).all(axis=2).mean() > 0.5
    blue = (abs(pixels.astype(int) - (0, 0x72, 0xB2)) < 3).all(axis=2)
    assert blue.sum() > 5000  # the bar of the best
    words = svg_words(svg.read_text())
    assert {"good", "shifted", "late", "1", "2", "3"} <= set(words)
    assert "ceiling of foreground and boundary: 0.970" in words
    assert any(
        word.startswith(f"{result['methods']['good']['mean']['mSA']:.3f} ") for word in words
    )
    assert write_figure(result, tmp_path / "again")[1].read_text() == svg.read_text()


def svg_words(text):
    root = ElementTree.fromstring(text)
    return ["".join(element.itertext()) for element in root.iter(f"{SVG_NAMESPACE}text")]


def test_bars_are_as_long_as_the_scores(scene):
    """From the drawing itself: the widths of the bars are in the ratio of the means."""
    _, labels, methods = scene
    result = make_result(labels, methods)
    root = ElementTree.fromstring(figure_svg(result))
    bars = []
    for path in root.iter(f"{SVG_NAMESPACE}path"):
        if any(color in path.get("style", "") for color in ("#0072b2", "#7fa3bc")):
            numbers = [
                float(n)
                for n in path.get("d").replace("L", "M").replace("z", "").split()
                if n != "M"
            ]
            bars.append(max(numbers[::2]) - min(numbers[::2]))
    means = [result["methods"][name]["mean"]["mSA"] for name in ranking(result)]
    assert np.allclose(np.array(bars) / bars[0], np.array(means) / means[0], atol=1e-3)


def test_published_numbers_have_a_panel_of_their_own(scene, tmp_path):
    _, labels, methods = scene
    result = make_result(labels, methods)
    published = {"UNet": 0.372, "ViM-UNet Small": 0.274}
    alone = svg_words(figure_svg(result))
    both = svg_words(figure_svg(result, published))
    assert PUBLISHED_TITLE not in alone
    assert both.index(PUBLISHED_TITLE) > both.index("late")
    assert {"UNet", "0.372", "0.274", "mSA as published"} <= set(both) - set(alone)
    folder, labels, methods = scene
    _, page = report(folder, labels, methods, published=published)
    names = [row[0][1] for row in page.rows if row]
    assert not any("UNet" in name for name in names)


@pytest.mark.parametrize("count", [1, 12])
def test_figures_of_one_and_of_many_methods(scene, tmp_path, count):
    _, labels, methods = scene
    names = [f"a rather long name of a method with $math_{i}$ and more" for i in range(count)]
    result = make_result(labels, dict.fromkeys(names, methods["shifted"]))
    words = svg_words(write_figure(result, tmp_path / "many")[1].read_text())
    shown = [word for word in words if word.startswith("a rather long")]
    assert len(shown) == count
    assert all(word.endswith("…") and len(word) <= 34 for word in shown)
    assert ("1" in words) == (count > 1)
    height = Image.open(tmp_path / "many" / "figure.png").height
    assert (height > 900) == (count == 12)


def test_scores_are_written_alike():
    assert score_text(0.12351) == "0.124"
    assert score_text(float("nan")) == "n/a"
    assert score_text(0.05, sign=True) == "+0.050"


@pytest.fixture
def published_module():
    file = Path(__file__).resolve().parents[1] / "experiments" / "benchmark" / "published.py"
    spec = util.spec_from_file_location("published", file)
    module = util.module_from_spec(spec)
    sys.modules["published"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["published"]


def test_published_scores_are_those_of_figure_2(published_module):
    names = [
        *("UNet", "UNETR Base", "UNETR Large", "UNETR Huge", "nnU-Net v2", "U-Mamba Bot"),
        *("U-Mamba Enc", "ViM-UNet Tiny", "ViM-UNet Small"),
    ]
    livecell = [0.372, 0.110, 0.171, 0.216, 0.228, 0.234, 0.230, 0.269, 0.274]
    cremi = [0.354, 0.285, 0.325, 0.324, 0.452, 0.471, 0.467, 0.518, 0.530]
    distances = [0.429, 0.145, 0.157, 0.136, None, None, None, 0.381, 0.397]
    scores = published_module.published_scores
    assert scores("LIVECell", "boundaries") == dict(zip(names, livecell, strict=True))
    assert scores("CREMI", "boundaries") == dict(zip(names, cremi, strict=True))
    assert scores("LIVECell", "distances") == {
        name: score for name, score in zip(names, distances, strict=True) if score is not None
    }
    with pytest.raises(ValueError, match="No published mSA for 'ISIC boundaries'. Known: CREMI"):
        scores("ISIC", "boundaries")


def test_published_table_1(published_module):
    numbers = {
        (row.method, row.data, row.quantity): (row.value, row.spread, row.relation)
        for row in published_module.read_published()
    }
    assert len(numbers) + 6 == 48  # LIVECell has mSA of two forms for six methods
    for method, millions, memory in [
        *(("UNet", 28, 4), ("UNETR Base", 113, 24), ("UNETR Large", 334, 38)),
        *(("UNETR Huge", 665, 48), ("ViM-UNet Tiny", 18, 9), ("ViM-UNet Small", 39, 10)),
    ]:
        assert numbers[method, "", "parameters"][0] == millions
        relation = "<=" if method == "UNet" else "="
        assert numbers[method, "", "training memory"] == (memory, None, relation)
    assert numbers["UNETR Huge", "CREMI", "inference"] == (4.86, 0.038, "=")
    assert numbers["ViM-UNet Small", "LIVECell", "inference"] == (0.05, 0.0046, "=")


def test_published_rows_say_so(published_module, tmp_path):
    rows = published_module.read_published()
    assert {row.origin for row in rows} == {"published"}
    assert all("Archit & Pape, MIDL 2024, arXiv 2404.07705" in row.source for row in rows)
    text = published_module.FILE.read_text(encoding="utf-8")
    mine = tmp_path / "mine.csv"
    mine.write_text(text.replace("published,UNet,LIVECell,b", "measured,UNet,LIVECell,b"))
    with pytest.raises(ValueError, match="`origin` in .* must be 'published', got 'measured'"):
        published_module.read_published(mine)
    mine.write_text(text.replace("unit,", "units,", 1))
    with pytest.raises(ValueError, match="must have the columns .* lacks"):
        published_module.read_published(mine)
