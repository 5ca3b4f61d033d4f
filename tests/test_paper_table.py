"""The paper's table: what is run, for how long, and what the table says."""

import csv
import json
import shutil
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from vimunet.cli import parse

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"


@pytest.fixture
def table(monkeypatch):
    """The script as a module, whose trainings are noted and pretended."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.delitem(sys.modules, "keep", raising=False)
    spec = util.spec_from_file_location("paper_table", ROOT / "experiments" / "paper_table.py")
    module = util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "paper_table", module)
    spec.loader.exec_module(module)
    return module


def test_time_leaves_out_warming_up_and_the_last_iteration(table, monkeypatch, tmp_path):
    def pretend(command, **_):
        assert command[command.index("--iterations") + 1] == str(table.TIMED)
        folder = Path(command[command.index("--output") + 1])
        folder.mkdir()
        pace = 0.5 if "unet" in command else 2.0
        seconds = [30 + pace * i for i in range(table.TIMED)]  # the first ones take half a minute
        seconds[-1] += 100  # scoring
        rows = [f"{i + 1},0.5,0.0001,,,{value},0.01" for i, value in enumerate(seconds)]
        header = "iteration,loss,lr,val_loss,val_mSA,seconds,data_seconds"
        (folder / "log.csv").write_text("\n".join([header, *rows]))

    monkeypatch.setattr(table.subprocess, "run", pretend)
    predicted = []
    monkeypatch.setattr(table, "predict", lambda image, model: predicted.append(image.shape))
    monkeypatch.setattr(table, "build_model", lambda *_, **__: torch.nn.Identity())
    table.time_all(tmp_path, tmp_path)
    seconds = table.measured_seconds(tmp_path)
    assert predicted == [(512, 512)] * table.PREDICTIONS * len(table.MODELS)
    assert all(0 <= measured["prediction"] < 1 for measured in seconds.values())
    iterations = {model: measured["iteration"] for model, measured in seconds.items()}
    assert iterations == pytest.approx(dict.fromkeys(table.MODELS, 2.0) | {"unet": 0.5})
    lines = (tmp_path / table.SECONDS).read_text().splitlines()
    kept = [line for line in lines if not line.startswith("vim_t,")]
    (tmp_path / table.SECONDS).write_text("\n".join(kept))
    with pytest.raises(FileNotFoundError, match="got none for vim_t. Run `paper_table.py time` f"):
        table.measured_seconds(tmp_path)


def test_an_interrupted_run_goes_on_and_one_without_state_begins_again(table, tmp_path):
    run = table.RUNS[0]
    folder = tmp_path / run.name
    folder.mkdir()
    assert "--resume" not in table.training(run, folder, tmp_path, 10)
    (folder / "training_state.pt").touch()
    assert "--resume" in table.training(run, folder, tmp_path, 10)


def read_rows(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def summary_of(run):
    """What `evaluate.py` wrote for a run, as far as it was kept."""
    (row,) = (row for row in read_rows(RESULTS / "runs.csv") if row["run"] == run)
    config = {"model": row["model"], "seed": int(row["seed"]), "precision": row["precision"]}
    config |= {name: json.loads(row[name]) for name in ("model_args", "representation")}
    info = {"training_data": "stand-in for CREMI", "iteration": int(row["iteration"])}
    info |= {name: row[name] for name in ("licence", "version", "commit")} | {"config": config}
    summary = {"info": info, "tuned": json.loads(row["tuned"]), "val": {}, "test": {}}
    for scores in read_rows(RESULTS / "scores.csv"):
        if scores["run"] == run:
            low, high = float(scores["mSA low"]), float(scores["mSA high"])
            summary[scores["split"]][scores["recipe"]] = {
                "images": int(scores["images"]),
                "mean": {"mSA": float(scores["mSA"])},
                "confidence": {"mSA": [low, high]},
            }
    return summary


def test_table_of_finished_runs(table, tmp_path):
    for name, stored in (
        ("em_boundaries_unet_0", "em_unet"),
        ("em_boundaries_vim_t_0", "em_vim_t"),
    ):
        (tmp_path / name / "scores").mkdir(parents=True)
        file = tmp_path / name / "scores" / "summary.json"
        file.write_text(json.dumps(summary_of(stored)))
        (tmp_path / name / "peak_kilobytes").write_text(str(3 * 2**20))
    lines = [f"{model},0.75,0.25" for model in table.MODELS]
    (tmp_path / table.SECONDS).write_text("\n".join(["model,iteration,prediction", *lines]))
    table.keep(tmp_path, tmp_path / "out")
    shutil.rmtree(tmp_path / "em_boundaries_unet_0")  # a report needs what was kept, no runs
    table.keep(tmp_path, tmp_path / "out")
    table.report(tmp_path / "out")
    text = (tmp_path / "out" / "paper_table.md").read_text()
    unet = next(line for line in text.splitlines() if line.startswith("| `unet`"))
    cells = [cell.strip() for cell in unet.strip("|").split("|")]
    # 1200 iterations of 0.75 s are 15 minutes; scores as in experiments/results/README.md
    assert cells[:7] == ["`unet`", "31.0 M", "0", "1200", "0.75", "15", "3.0"]
    assert cells[7:9] == [".670", ".642 (.622-.662)"]
    assert cells[-2:] == ["0.25", ".354"]
    assert "Not made yet: em_boundaries_unetr_b_0, em_boundaries_vim_s_0, " in text
    licence = summary_of("em_unet")["info"]["licence"]
    assert f"Ceiling of the test images: .939. Weights: {licence}." in text
    assert (tmp_path / "out" / "paper_table.png").stat().st_size > 5000


def test_the_table_can_be_made_again_from_what_is_kept(table, tmp_path):
    for name in ("runs.csv", "scores.csv", table.SECONDS):
        shutil.copy(RESULTS / name, tmp_path)
    table.report(tmp_path)
    assert (tmp_path / "paper_table.md").read_text() == (RESULTS / "paper_table.md").read_text()


def test_each_run_is_a_command_of_vimunet(table, tmp_path):
    """Which takes all of its flags; neurites learn the boundary alone."""
    for run in table.RUNS:
        python, minus_m, program, *arguments = table.training(run, tmp_path / "run", tmp_path, 10)
        assert (python, minus_m, program) == (sys.executable, "-m", "vimunet")
        options = parse(arguments)
        assert options.dataset == {"em": "cremi_sample", "phase": "livecell_sample"}[run.data]
        assert options.representation == ("boundary" if run.data == "em" else run.form)
        assert (options.model, options.seed, options.iterations) == (run.model, run.seed, 10)
        planned = ["image_size=256"] if run.model.startswith("umamba") else []
        assert options.option == planned
