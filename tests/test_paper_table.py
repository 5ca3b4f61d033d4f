"""The paper's table: what is run, for how long, and what the table says."""

import json
import shutil
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "experiments" / "results" / "standins"


@pytest.fixture
def table(monkeypatch):
    """The script as a module, whose trainings are noted and pretended."""
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
    del seconds["vim_t"]
    (tmp_path / table.SECONDS).write_text(json.dumps(seconds))
    with pytest.raises(FileNotFoundError, match="got none for vim_t. Run `paper_table.py time` f"):
        table.measured_seconds(tmp_path)


def test_an_interrupted_run_goes_on_and_one_without_state_begins_again(table, tmp_path):
    run = table.RUNS[0]
    folder = tmp_path / run.name
    folder.mkdir()
    assert "--resume" not in table.training(run, folder, tmp_path, 10)
    (folder / "training_state.pt").touch()
    assert "--resume" in table.training(run, folder, tmp_path, 10)


def test_table_of_finished_runs(table, tmp_path):
    for name, stored in (
        ("em_boundaries_unet_0", "em_unet"),
        ("em_boundaries_vim_t_0", "em_vim_t"),
    ):
        (tmp_path / name / "scores").mkdir(parents=True)
        shutil.copy(STORED / stored / "summary.json", tmp_path / name / "scores")
        (tmp_path / name / "peak_kilobytes").write_text(str(3 * 2**20))
    (tmp_path / table.SECONDS).write_text(
        json.dumps(dict.fromkeys(table.MODELS, {"iteration": 0.75, "prediction": 0.25}))
    )
    table.keep(tmp_path, tmp_path / "out" / table.KEPT)
    shutil.rmtree(tmp_path / "em_boundaries_unet_0")  # a report needs what was kept, no runs
    table.keep(tmp_path, tmp_path / "out" / table.KEPT)
    table.report(tmp_path / "out")
    text = (tmp_path / "out" / "paper_table.md").read_text()
    unet = next(line for line in text.splitlines() if line.startswith("| `unet`"))
    cells = [cell.strip() for cell in unet.strip("|").split("|")]
    # 1200 iterations of 0.75 s are 15 minutes; scores as in experiments/results/README.md
    assert cells[:7] == ["`unet`", "31.0 M", "0", "1200", "0.75", "15", "3.0"]
    assert cells[7:9] == [".670", ".642 (.622-.662)"]
    assert cells[-2:] == ["0.25", ".354"]
    assert "Not made yet: em_boundaries_unetr_b_0, em_boundaries_vim_s_0, " in text
    info = json.loads((STORED / "em_unet" / "summary.json").read_text())["info"]
    assert f"Ceiling of the test images: .939. Weights: {info['licence']}." in text
    assert (tmp_path / "out" / "paper_table.png").stat().st_size > 5000
