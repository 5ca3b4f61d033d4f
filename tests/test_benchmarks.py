"""The parts of the benchmarks that are not timing: FLOPs, rounds, memory, tables and verdicts."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import growth, measure, networks, report, road, scan, start
from vimunet.models import build_model
from vimunet.models.scan import selective_scan, selective_scan_reference

ROOT = Path(__file__).resolve().parents[1]


def test_flops_of_a_convolution_and_a_product():
    network = nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=3, padding=1, bias=False),  # 2 * 3 * 8 * 9 at 10 x 20 places
        nn.ConvTranspose2d(8, 4, kernel_size=2, stride=2, bias=False),  # 2 * 8 * 4 * 4 at as many
        nn.Flatten(2),
        nn.Linear(800, 5, bias=False),  # 2 * 800 * 5 for 4 channels
    )
    work = measure.count_flops(network, torch.zeros(1, 3, 10, 20))
    assert work.convolution * 1e9 == pytest.approx(432 * 200 + 256 * 200)
    assert work.product * 1e9 == pytest.approx(8000 * 4)


def test_flops_of_attention_are_products():
    class Attention(nn.Module):
        def forward(self, tokens):
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    work = measure.count_flops(Attention(), torch.zeros(1, 2, 7, 16))
    assert work.product * 1e9 == pytest.approx(2 * 2 * (2 * 7 * 7 * 16))
    assert work.convolution == 0


def test_flops_of_the_unet_follow_from_its_channels():
    network = build_model("unet", features=4, depth=2)
    y, x = 16, 24
    by_hand = 2 * y * x * 4 * 2  # out_conv, 1 x 1
    for level, (before, after) in enumerate([(1, 4), (4, 8), (8, 16)]):
        places = y * x / 4**level
        by_hand += 2 * 9 * places * (before * after + after * after)
        if level < 2:  # on the way up: 2 x 2 transposed, then two convolutions
            by_hand += 2 * places * 2 * after * after
            by_hand += 2 * 9 * places * (2 * after * after + after * after)
    work = measure.count_flops(network, torch.zeros(1, 1, y, x))
    assert work.convolution * 1e9 == pytest.approx(by_hand)
    assert work.product == 0


def test_an_operation_that_cannot_be_counted_is_not_left_out():
    class Quantized(nn.Module):
        def forward(self, image):
            return torch.ops.aten.mkldnn_convolution(
                image, torch.ones(1, 1, 1, 1), None, [0, 0], [1, 1], [1, 1], 1
            )

    with pytest.raises(RuntimeError, match="must know all convolutions and products, got aten"):
        measure.count_flops(Quantized(), torch.zeros(1, 1, 4, 4))


def test_limit_is_work_over_rate():
    work, rates = measure.Work(convolution=30, product=8), measure.Work(100, 40)
    assert work.seconds_at(rates) == pytest.approx(0.3 + 0.2)
    assert rates.best(measure.Work(90, 50)) == measure.Work(100, 50)
    row = {"convolution_gflop": 30, "product_gflop": 8, "precision": "bfloat16", "seconds": 1.25}
    (limited,) = networks.add_limits([row], {"bfloat16": rates})
    assert limited["limit_seconds"] == pytest.approx(0.5)
    assert limited["fraction_of_limit"] == pytest.approx(0.4)


def test_rivals_take_turns(monkeypatch):
    clock = iter(np.cumsum([0, 1, 0, 2, 0, 5, 0, 9, 0, 3, 0, 7, 0, 4, 0, 8]).tolist())
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    order: list[str] = []
    rivals = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = measure.compare(rivals, repeats=3, quiet=True)
    assert "".join(order) == "abababab"
    assert timings["a"] == measure.Timing(minimum=3, median=4, calls=3)
    assert timings["b"] == measure.Timing(minimum=7, median=8, calls=3)


def test_short_calls_are_repeated(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock) * 0.005)
    timings = measure.compare({"short": lambda: None}, repeats=2, quiet=True)
    assert timings["short"].calls == 2 * 4


def test_slow_rivals_have_fewer_turns(monkeypatch):
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    timings = measure.compare({"slow": lambda: None}, repeats=9, quiet=True)
    assert timings["slow"] == measure.Timing(25, 25, calls=3)  # 75 seconds: more than 60


def test_memory_of_a_fresh_process_is_its_own():
    ballast = np.ones(2**27, np.uint8)  # 128 MiB that a child must not inherit
    code = "from benchmarks.measure import peak_memory; print(peak_memory())"
    run = [sys.executable, "-c", code]
    peak = int(subprocess.run(run, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    assert ballast.nbytes < measure.peak_memory()
    assert 50e6 < peak < measure.peak_memory()


def test_failed_process_tells_why():
    with pytest.raises(RuntimeError, match="(?s)peak_memory.*ended with code 1.*TypeError"):
        measure.run_fresh("benchmarks.measure:peak_memory", size=3)


def test_rows_tell_where_they_were_measured(tmp_path):
    measure.write_rows(tmp_path / "a" / "t.csv", [{"x": 1, "threads": 7}, {"x": 2, "threads": 8}])
    with (tmp_path / "a" / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["x"], row["threads"]) for row in rows] == [("1", "7"), ("2", "8")]
    assert rows[0]["torch"] == torch.__version__
    assert rows[0]["cpu"]


def test_results_do_not_make_the_code_dirty(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert measure.machine()["commit"] == ""
    for name in ("code.py", "benchmarks/results/scan.csv", "docs/performance.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    (tmp_path / "benchmarks/results/scan.csv").write_text("after")
    (tmp_path / "docs/performance.md").write_text("after")
    assert len(str(measure.machine()["commit"])) == 40
    (tmp_path / "code.py").write_text("after")
    assert str(measure.machine()["commit"]).endswith("-dirty")


@pytest.mark.parametrize(
    ("order", "visited"),
    [
        ("forward", [0, 1, 2, 3, 4, 5]),
        ("reverse", [5, 4, 3, 2, 1, 0]),
        ("columns", [0, 3, 1, 4, 2, 5]),
        ("columns-reverse", [5, 2, 4, 1, 3, 0]),
    ],
)
def test_loop_scan_visits_tokens_in_order(order, visited):
    u, delta = torch.rand(2, 1, 1, 6, 2)
    A, D = -torch.rand(1, 2, 3), torch.zeros(1, 2)
    B, C = torch.rand(2, 1, 1, 6, 3)
    y = networks.loop_scan(u, delta, A, B, C, D, orders=(order,), grid=(2, 3))
    in_order = (tensor[0][:, visited] for tensor in (u, delta, B, C))
    by_hand = selective_scan_reference(*_arrange(*in_order, A=A[0], D=D[0]))
    torch.testing.assert_close(y[:, visited], by_hand)


def _arrange(u, delta, B, C, *, A, D):
    return u, delta, A, B, C, D


def test_loop_scan_does_all_that_the_fast_one_does():
    u, delta, gate = torch.randn(3, 2, 1, 6, 4)
    A, (D, bias) = -torch.rand(2, 4, 3), torch.randn(2, 2, 4)
    B, C = torch.randn(2, 2, 1, 6, 3)
    arguments = {"orders": ("reverse", "columns"), "grid": (3, 2), "delta_bias": bias}
    for extra in ({}, {"gate": gate[0]}):
        slow = networks.loop_scan(u, delta, A, B, C, D, **arguments, **extra)
        fast = selective_scan(u, delta, A, B, C, D, **arguments, **extra)
        torch.testing.assert_close(slow, fast)


def test_forms_of_the_scan_agree():
    inputs = scan.make_inputs(length=20, width=8)
    truth = scan.FORMS["definition"](*inputs)
    for name in ("chunked torch", "vimunet"):
        torch.testing.assert_close(scan.FORMS[name](*inputs), truth)
        *_, by_skip = scan.both(scan.FORMS[name], inputs)()
        torch.testing.assert_close(by_skip, inputs[0].sum((0, 1)))  # y = ... + D * u


def test_chunked_scan_runs_without_compiled_kernels(monkeypatch):
    def refuse(*_):
        raise AssertionError("the compiled scan must not run")

    monkeypatch.setattr("vimunet.models.compiled.selective_scan", refuse)
    scan.chunked(*scan.make_inputs(length=5, width=8))


def test_predicted_pixels_count_the_halo():
    assert growth.predicted_pixels(512, 512) == 512**2
    # Two windows per axis, which share a halo of 64 on each side of the cut: 1024 + 2 * 64.
    assert growth.predicted_pixels(1024, 512) == (1024 + 128) ** 2


def test_noise_is_the_same_wherever_one_asks():
    noise = growth.Noise(100, 80)
    whole = noise[slice(0, 100), slice(0, 80)]
    assert whole.shape == (100, 80)
    assert len(np.unique(whole)) > 200
    assert np.array_equal(noise[slice(20, 50), slice(30, 40)], whole[20:50, 30:40])


def test_road_samples_have_the_size_that_is_asked_for(tmp_path):
    image, labels, source = road.load_pair("EM section", tmp_path / "missing", (600, 100))
    assert image.shape == labels.shape == (600, 100)
    assert source == "samples"
    assert np.array_equal(image[:250], image[250:500])


def test_imports_are_summed_by_package():
    text = """import time: self [us] | cumulative | imported package
import time:       300 |        300 |     numpy.core
import time:      1000 |       1300 |   numpy
import time:       500 |       1800 | torch
"""
    assert start.heaviest_imports(text) == {"numpy": 0.0013, "torch": 0.0005}


@pytest.fixture
def results(tmp_path):
    """CSV files as small as they can be, with round numbers."""
    origin = {"threads": 1, "cpu": "A CPU", "torch": "2", "scan_backend": "cpp", "commit": "c" * 40}
    case = {"length": 1025, "width": 384, "largest_difference": 0}
    scans = [
        {**case, "form": form, "pass": passes, "seconds": seconds}
        for form, passes, seconds in (
            ("definition", "forward", 0.05),
            ("vimunet", "forward", 0.0005),
            ("definition", "forward + backward", 0.2),
            ("vimunet", "forward + backward", 0.0025),
        )
    ]
    rows = [
        {
            "network": name,
            "size": 512,
            "precision": precision,
            "seconds": seconds,
            "median_seconds": seconds,
            "convolution_gflop": 100,
            "product_gflop": 50,
            "largest_difference": difference,
            "limit_seconds": seconds / 2,
            "fraction_of_limit": 0.5,
        }
        for name, difference, *times in (
            ("vim_t", "", 2.0, 0.8),
            ("unet", "", 3.0, 1.5),
            ("unet, torch-em's weights", 3e-5, 4.0, 1.5),
            ("torch-em UNet2d", "", 6.0, 4.0),
            ("torch-em UNet2d, channels-last", "", 5.0, 6.0),
        )
        for precision, seconds in zip(("float32", "bfloat16"), times, strict=True)
    ]
    tables = {
        "scan": scans,
        "networks": rows,
        "models": [
            {
                "model": "vim_t",
                "size": 256,
                "float32": 0.4,
                "bfloat16": 0.2,
                "one_thread": 0.5,
                "one_thread_loop": 5.0,
            }
        ],
        "limits": [
            {
                "precision": precision,
                "convolution_gflop_per_second": 150,
                "product_gflop_per_second": 120,
            }
            for precision in ("float32", "bfloat16")
        ],
        "growth": [
            {
                "size": size,
                "megapixel": size**2 / 1e6,
                "predicted_megapixel": size**2 / 1e6,
                "seconds": seconds,
                "output_bytes": 8 * size**2,
                "peak_bytes": 8 * size**2 + 400e6,
            }
            for size, seconds in ((512, 1.0), (1024, 2.0), (2048, 8.4))
        ],
        "corrections": [
            {"correction": name, "p95_seconds": seconds}
            for name, seconds in (("split", 0.25), ("merge", 0.03))
        ],
    }
    for name, table in tables.items():
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*table[0], *origin])
            writer.writeheader()
            writer.writerows({**row, **origin} for row in table)
    return tmp_path


def test_goals_are_judged(results):
    verdicts = {goal.what: goal.row(report.read_tables(results))[2:] for goal in report.GOALS}
    values = list(verdicts.values())
    assert values[0] == ["100", "reached"]  # 0.05 / 0.0005
    assert values[1] == ["0.5", "reached"]
    assert values[2] == ["5", "**missed**"]
    assert values[3] == ["2.5", "reached"]  # channels-last, the faster UNet2d: 5 / 2
    assert values[4] == ["2.5", "reached"]
    assert values[5] == ["1.25", "**missed**"]
    assert values[6] == ["2.67", "**missed**"]  # in bfloat16, the other UNet2d is the faster
    assert values[7] == ["3e-05", "reached"]
    assert values[8:12] == [["0.5", "**missed**"]] * 4
    assert values[12:15] == [["not measured", ""]] * 3
    assert values[15] == ["0.05", "reached"]
    assert values[16] == ["0", "reached"]
    assert values[17] == ["0.25", "**missed**"]  # the slowest of the two kinds


def test_report_fills_the_document_again_and_again(results, monkeypatch, capsys):
    document = results / "docs" / "performance.md"
    document.parent.mkdir()
    for name in report.DOCUMENTS:
        (document.parent / name).write_text((ROOT / "docs" / name).read_text())
    command = ["report", "--results", str(results), "--docs", str(document.parent)]
    monkeypatch.setattr(sys, "argv", command)
    report.main()
    once = document.read_text()
    report.main()
    assert document.read_text() == once

    assert (
        "| `vim_t`, 512 x 512, float32: times faster than torch-em's UNet2d | ≥ 2.1 | 2.5 |" in once
    )
    assert "100 GFLOP of convolutions and 50 GFLOP of matrix products" in once
    assert "it takes 2 s, which is 50% of the limit" in once
    assert "| 1025 | 384 | 1 | forward | 50 (100 x) | 0.5 (1 x) |" in once
    assert (
        "| `vim_t` | 0.4 | 0.2 | 0.5 | 5 (10 x) | .619 / .608 |"
        in (document.parent / "models.md").read_text()
    )
    assert once.count(report.MISSING) == 4  # arrangement, road, training_step, start
    pictures = {path.name for path in (document.parent / "images").iterdir()}
    assert pictures == {f"performance_{name}.png" for name in ("scan", "networks", "growth")}
    assert "reached" in capsys.readouterr().out


def test_document_without_markers_is_refused():
    with pytest.raises(ValueError, match="<!-- goals -->"):
        report.fill("# Speed", dict.fromkeys(report.TABLES, []), report.PERFORMANCE)


def test_every_table_of_the_makefile_is_a_script():
    lines = (ROOT / "Makefile").read_text().splitlines()
    (names,) = (line.split("=")[1] for line in lines if line.startswith("BENCHMARKS"))
    for name in names.split():
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()
