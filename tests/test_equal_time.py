"""The comparison in equal time: who is run, what is kept of it, and what decides."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning_fabric")

from vimunet.io.pairs import Sample
from vimunet.models.mamba import BidirectionalMamba, Mamba
from vimunet.representations import Boundaries

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.fixture
def modules(monkeypatch):
    """The three files of the comparison, as they import each other."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    for name in ("equal_time", "equal_time_plan", "equal_time_report", "keep"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import equal_time
    import equal_time_plan
    import equal_time_report

    return equal_time, equal_time_plan, equal_time_report


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        table = csv.DictWriter(opened, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def finish(runs, run, val, images=(), kind=""):
    """Write what a finished run leaves."""
    key = {"data": run.data, "entrant": run.entrant, "seed": run.seed}
    score = {"val_mSA": val, "test_mSA": np.mean(images or [0]), "iterations": 60}
    write(runs / run.name / "run.csv", [key | score])
    rows = [{**key, "image": f"{i:02d}", "kind": kind, "mSA": s} for i, s in enumerate(images)]
    if rows:
        write(runs / run.name / "images.csv", rows)


def test_every_control_is_an_entrant_and_the_late_ones_are_controls(modules):
    _, plan, _ = modules
    controls = {c for entrant in plan.ENTRANTS.values() for c in entrant.controls}
    late = {name for name, entrant in plan.ENTRANTS.items() if not entrant.screened}
    assert late <= controls <= set(plan.ENTRANTS)
    for entrant in plan.ENTRANTS.values():
        layers = (BidirectionalMamba, Mamba)
        has_layers = any(isinstance(module, layers) for module in entrant.build(1).modules())
        assert bool(entrant.controls) == has_layers


def test_the_best_and_the_controls_of_those_with_mamba_go_on(modules):
    _, plan, _ = modules
    scores = dict.fromkeys((n for n, e in plan.ENTRANTS.items() if e.screened), 0.1)
    scores |= {"unet": 0.9, "unet_46": 0.8, "vim_n_without": 0.7, "unet_16": 0.6}
    best = plan.finalists(scores | {"umamba_bot": 0.2})
    assert best[:5] == ["unet", "unet_46", "vim_n_without", "unet_16", "umamba_bot"]
    assert set(best[5:]) == set(plan.ENTRANTS["umamba_bot"].controls) - set(best[:5])
    best = plan.finalists(scores | {"vim_n": 0.65})
    assert best[:4] == ["unet", "unet_46", "vim_n_without", "vim_n"]
    assert set(best[4:]) == set(plan.ENTRANTS["vim_n"].controls) - set(best[:4])


def test_seeds_follow_when_the_screening_of_a_data_set_is_complete(modules, tmp_path):
    _, plan, _ = modules
    screening = plan.planned(tmp_path)
    screened = [name for name, entrant in plan.ENTRANTS.items() if entrant.screened]
    assert [run.name for run in screening] == [f"{d}_{e}_0" for d in plan.DATA for e in screened]
    em = [run for run in screening if run.data == "em"]
    for i, run in enumerate(em):
        assert plan.planned(tmp_path) == screening
        finish(tmp_path, run, 0.5 - i / 100)
    (tmp_path / em[0].name / "run.csv").unlink()  # its loss was not finite
    (tmp_path / em[0].name / "failed.txt").touch()
    more = plan.planned(tmp_path)[len(screening) :]
    chosen = plan.finalists({run.entrant: 0.5 - i / 100 for i, run in enumerate(em) if i})
    late = [name for name in chosen if not plan.ENTRANTS[name].screened]
    assert {(run.data, run.entrant, run.seed) for run in more} == {
        *(("em", name, seed) for name in chosen for seed in (1, 2)),
        *(("em", name, 0) for name in late),
    }


def test_iterations_fit_into_the_minutes(modules, monkeypatch, tmp_path):
    timing, plan, _ = modules
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    write(tmp_path / plan.SECONDS, [{"entrant": "unet", "seconds_per_iteration": "17.7"}])
    assert timing.read_iterations() == {"unet": 67}  # 67 * 17.7 s = 19.8 minutes


def test_every_entrant_is_timed(modules, monkeypatch):
    timing, plan, _ = modules
    small = plan.Entrant("unet", {"features": 2, "depth": 1})
    monkeypatch.setattr(timing, "ENTRANTS", {"small": small})
    monkeypatch.setitem(timing.RECIPE, "crop_size", 16)
    seen = []

    def pretend(task, at_least=0.0):
        task()
        seen.append(at_least)
        return float(len(seen))

    monkeypatch.setattr(timing, "seconds_of", pretend)
    (row,) = timing.time_all()
    assert seen == [2.0] * timing.ROUNDS + [0.0] * 3
    assert (row["entrant"], row["seconds_per_iteration"]) == ("small", "3.000")  # of 1 ... 5
    assert (row["fastest"], row["slowest"], row["prediction_seconds"]) == ("1.000", "5.000", "7.00")


def test_a_file_is_claimed_by_one(modules, tmp_path):
    timing, _, _ = modules
    with timing.claimed(tmp_path / "a") as first, timing.claimed(tmp_path / "a") as second:
        assert (first, second) == (True, False)
    with timing.claimed(tmp_path / "a") as again:
        assert again


def cells(i):
    """Two squares on noise."""
    rng = np.random.default_rng(i)
    labels = np.zeros((40, 48), int)
    labels[4:16, 4:16], labels[20:34, 20:40] = 1, 2
    return Sample(f"{i}", lambda: (100 * (labels > 0) + rng.normal(size=labels.shape), labels))


def test_a_run_is_trained_scored_and_kept(modules, monkeypatch, tmp_path):
    """From nothing to the tables; the second call finds nothing to do."""
    timing, plan, tables = modules

    class Cells(plan.DataSet):
        def read(self, root, split):
            return [cells(i) for i in {"train": (0, 1), "val": (2,), "test": (3, 4, 5, 6)}[split]]

    data = Cells("Squares", "nuclei", "", Boundaries(), block=2)
    for module in (timing, plan, tables):
        monkeypatch.setattr(module, "DATA", {"em": data})
        monkeypatch.setattr(module, "SEEDS", (0, 1), raising=False)
        entrants = {"small": plan.Entrant("unet", {"features": 2, "depth": 1})}
        monkeypatch.setattr(module, "ENTRANTS", entrants)
    monkeypatch.setattr(timing, "RECIPE", plan.RECIPE | {"crop_size": 16, "workers": 0})
    runs, results = tmp_path / "runs", tmp_path / "results"
    timing.run_all(tmp_path, runs, {"small": 2})
    assert sorted(f.name for f in runs.glob("*_?")) == ["em_small_0", "em_small_1"]
    assert not (runs / "em_small_0" / "training_state.pt").exists()
    monkeypatch.setattr(timing, "make", None)
    timing.run_all(tmp_path, runs, {"small": 2})
    timed = {"entrant": "small", "parameters": 9, "seconds_per_iteration": 10}
    write(results / plan.SECONDS, [timed | {"prediction_seconds": 0.5}])
    (results / tables.REGISTRATION).write_text("Registered.\n")
    tables.report(runs, results)
    first, second = plan.read_rows(results / tables.RUNS)
    assert (first["seed"], second["seed"], first["minutes"]) == ("0", "1", "0.3")
    assert first["thresholds"].startswith("foreground_threshold=0.")
    images = plan.read_rows(results / tables.IMAGES)
    assert [row["image"] for row in images] == ["3", "4", "5", "6"] * 2
    assert {row["kind"] for row in images} == {"fluorescence"}
    mean = np.mean([float(row["mSA"]) for row in images[:4]])
    assert float(first["test_mSA"]) == pytest.approx(mean, abs=1e-4)
    text = (results / tables.REGISTRATION).read_text()
    assert text.startswith("Registered.\n" + tables.MARK)
    assert "| `small` | 0.0 M | 10.00 | 2 | 0, 1 |" in text
    tables.report(None, results)  # the tables are enough
    assert (results / tables.REGISTRATION).read_text() == text


def results_of(modules, tmp_path, scores, seeds=(0, 1, 2)):
    """Make the tables of EM from the mSA of each entrant on its 30 test images."""
    _, plan, tables = modules
    rows = [
        {"entrant": e, "parameters": 1, "seconds_per_iteration": 1, "prediction_seconds": 1}
        for e in plan.ENTRANTS
    ]
    write(tmp_path / plan.SECONDS, rows)
    (tmp_path / tables.REGISTRATION).write_text("")
    for entrant, of_seeds in scores.items():
        for seed, images in zip(seeds, of_seeds, strict=False):
            run = plan.Run("em", entrant, seed)
            finish(tmp_path / "runs", run, np.mean(images), list(images))
    tables.report(tmp_path / "runs", tmp_path)
    return tables.Table(tmp_path), (tmp_path / tables.REGISTRATION).read_text()


def test_seeds_are_averaged_first_and_sections_come_in_blocks(modules, tmp_path):
    base = np.full(30, 0.5)
    better = [base + 0.01, base + 0.03]
    better[1][:5] -= 0.12  # on average the first block is worse by .04
    scores = {"vim_n": better, "unet_16": [base, base, base - 0.5]}
    table, text = results_of(modules, tmp_path, scores)
    difference, ends, p = table.compared("em", "vim_n", "unet_16")
    assert difference == pytest.approx((5 * 0.02 - 0.04) / 6)
    # Of the signs of five times .02 and once -.04, 24 of 64 choices are at least as far from 0.
    sums = [abs(sum(s) - 0.04 * k) for s in _signs(5, 0.02) for k in (1, -1)]
    assert p == pytest.approx(np.mean(np.array(sums) >= 0.06 - 1e-12))
    assert ends[0] < 0 < ends[1]
    assert "| `vim_n` | `unet_16` | 0, 1 | +0.010 |" in text


def _signs(count, size):
    return np.array(np.meshgrid(*[(size, -size)] * count)).reshape(count, -1).T.tolist()


def test_mamba_wins_only_above_every_unet(modules, tmp_path, rng):
    noise = rng.normal(size=(3, 30)) / 1000
    three = {
        name: list(noise + mean)
        for name, mean in {"vim_n": 0.6, "unet_16": 0.5, "vim_n_without": 0.7}.items()
    }
    _, text = results_of(modules, tmp_path / "a", three | {"unet": [noise[0] + 0.55]})
    said = "wins, but not shown to be by its Mamba layers, against the UNets (p = 0.031)."
    assert f"- Neurites, EM: `vim_n` {said}" in text
    assert "| `vim_n` | `vim_n_without` | 0, 1, 2 | \N{MINUS SIGN}0.100 |" in text
    assert text.count("| `vim_n` | `unet_16` |") == 1  # a UNet and a control
    _, text = results_of(modules, tmp_path / "b", three | {"unet": [noise[0] + 0.65]})
    assert "`vim_n` does not win against the UNets (p = 1.000)" in text
    three["vim_n_without"] = list(noise + 0.4)
    _, text = results_of(modules, tmp_path / "d", three)
    assert "`vim_n` wins, and by its Mamba layers, against the UNets (p = 0.031)" in text
    _, text = results_of(modules, tmp_path / "c", {"vim_n": three["vim_n"][:1]})
    assert "No data set has all its seeds yet." in text


def test_the_data_sets_read_their_splits(modules, shared_data):
    _, plan, _ = modules
    sizes = {
        name: [len(data.read(shared_data, split)) for split in ("train", "val", "test")]
        for name, data in plan.DATA.items()
    }
    assert sizes == {"em": [13, 2, 30], "phase": [39, 6, 8], "nuclei": [490, 55, 59]}
    assert plan.DATA["nuclei"].kind_of(np.zeros((2, 2))) == "fluorescence"
    assert plan.DATA["em"].kind_of(np.zeros((2, 2))) == ""
    blocks = replace(plan.DATA["phase"], block=2).units([1, 3, 5, 7])
    assert blocks.tolist() == [2, 6]


def test_several_claims_are_corrected(modules):
    """Holm by hand: the smallest p times their number, the next times one less, never falling."""
    _, _, tables = modules
    assert tables.holm({"a": 0.03, "b": 0.02}) == {"b": 0.04, "a": 0.04}
    assert tables.holm({"a": 0.001, "b": 0.04}) == pytest.approx({"a": 0.002, "b": 0.04})
    assert tables.holm({"a": 0.6, "b": 1.0}) == {"a": 1.0, "b": 1.0}


def test_a_run_that_is_being_scored_is_not_reported(modules, tmp_path):
    _, plan, tables = modules
    results_of(modules, tmp_path, {"unet": [[0.5] * 30]})
    finish(tmp_path / "runs", plan.Run("em", "vim_n", 0), 0.5, [0.5] * 30)
    (tmp_path / "runs" / "em_vim_n_0" / "run.csv").unlink()
    (tmp_path / "runs" / "em_resunet_0").mkdir()
    (tmp_path / "runs" / "em_resunet_0" / "failed.txt").touch()
    tables.report(tmp_path / "runs", tmp_path)
    assert {row["entrant"] for row in plan.read_rows(tmp_path / tables.IMAGES)} == {"unet"}
    text = (tmp_path / tables.REGISTRATION).read_text()
    assert "Ended because the loss was not finite: em_resunet_0." in text
