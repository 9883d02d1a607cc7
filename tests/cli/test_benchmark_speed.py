"""`mri-qpan benchmark speed`, small: what stands in its report, not how fast this machine is."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import CARD, shaken, shipped_config
from typer.testing import CliRunner

from mri_qpan import bart
from mri_qpan.benchmark.speed import charts, child, engines, processes, report
from mri_qpan.benchmark.speed.problem import Problem, scaled, single_coil
from mri_qpan.benchmark.speed.yardstick import Yardstick
from mri_qpan.cli.main import app
from mri_qpan.errors import InputError
from mri_qpan.models import store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of one narrow layer."""
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    store.save(path, shaken(shipped_config(layers=1)), "small", CARD)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler, and a quick slice instead of the head."""
    from mri_qpan.benchmark.case import Case
    from mri_qpan.benchmark.speed import coils, problem

    monkeypatch.setattr(engines, "ENGINES", ("fused", "float32", "bfloat16", "onnx", "openvino"))
    monkeypatch.setattr(engines, "YARDSTICKS", {"published style, 1 layer": (1, True)})
    monkeypatch.setattr(coils, "EVALUATIONS", 1)

    def case(matrix: tuple[int, int], count: int, spec: str) -> Case:
        made = scaled(matrix[0], count, spec)
        reference = np.ones(matrix, np.float32)
        return Case("g", "quick", "none", spec, made.kspace, made.mask, made.mps, reference)

    monkeypatch.setattr(problem, "head_case", case)


@pytest.mark.usefixtures("quick")
def test_engines_and_bart_in_one_report(small: Path, tmp_path: Path) -> None:
    words = ["--models", str(small), "--matrix", "32", "--rounds", "2", "--threads", "1"]
    words += ["--parts", "engines,bart", "--figures", str(tmp_path / "f"), "-o", str(tmp_path)]
    result = CliRunner().invoke(app, ["benchmark", "speed", *words], catch_exceptions=False)
    assert result.exit_code == 0
    results = json.loads((tmp_path / "benchmark-speed.json").read_text())
    rows = {(row["model"], row["engine"]): row for row in results["engines"]["rows"]}
    skipped = {skip["engine"]: skip["reason"] for skip in results["engines"]["skipped"]}
    assert {("small", "float32"), ("small", "onnx"), ("published style, 1 layer", "eager float32")} <= {*rows}
    assert all(len(row["seconds"]) == 2 for row in rows.values())
    assert rows["small", "float32"]["error"] == 0
    assert 0 < rows["small", "onnx"]["error"] < 1e-4
    if find_spec("openvino"):
        assert 0 < rows["small", "openvino"]["error"] < 1e-4
    else:
        assert "pip install openvino" in skipped["openvino"]
    assert "32 filters" in skipped["fused"]
    (beside,) = results["bart"]
    methods = [outcome["method"] for outcome in beside["outcomes"]]
    assert methods == ["zero-filled", *(["wavelet (BART pics)"] if bart.available() else []), "small"]
    text = (tmp_path / "benchmark-speed.md").read_text()
    assert "processor" in text
    assert "- small, fused: the fused engine runs K-bit" in text
    assert "How many times faster" in text
    assert (tmp_path / "f" / "speed-engines.png").stat().st_size > 1000


def test_a_child_measures_a_start_and_a_size(small: Path, tmp_path: Path) -> None:
    scaled(32, 1, "lines:0.5").save(tmp_path / "slice.npz")
    job = {"model": str(small), "engine": "float32", "threads": 1, "folder": str(tmp_path)}
    request = json.dumps({"job": "start", "input": str(tmp_path / "slice.npz"), **job})
    words = [sys.executable, "-m", "mri_qpan.benchmark.speed.child", request]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["peak"] > 10e6 or sys.platform != "linux"
    threads = torch.get_num_threads()
    sized = child.size({**job, "matrix": 32, "coils": 2, "slices": 3, "mask": "lines:0.5", "repeats": 1})
    torch.set_num_threads(threads)
    assert sized["seconds"] > 0
    assert sized["memory"] >= 0


def test_slopes_are_those_of_what_was_measured() -> None:
    points = [{"coils": n, "seconds": 0.1 + 0.02 * n, "memory": 3000 * n} for n in (1, 2, 4, 8)]
    found = processes.slopes(points, "coils")
    assert found["seconds"] == pytest.approx(0.02)
    assert found["memory"] == pytest.approx(3000)
    pixels = [{"matrix": n, "seconds": 1e-6 * n**2, "memory": 8 * n**2} for n in (128, 256, 512)]
    assert processes.slopes(pixels, "pixels")["power"] == pytest.approx(1)


def test_every_part_is_in_the_report_and_drawn() -> None:
    sized = [{"matrix": 64, "coils": n, "slices": 1, "seconds": 0.1 * n, "memory": 10**6 * n} for n in (1, 2)]
    start = {"model": "m", "engine": "fused", "first": 3.0, "second": 2.5, "peak": 4e8, "disk": 1000}
    results = {
        "command": "mri-qpan benchmark speed",
        "machine": {"processor": "p"},
        "settings": {"threads": [1, 2], "rounds": 1, "matrix": [64, 64], "sized": "m"},
        "starts": [
            {**start, "weights": {"packed": 12}},
            {"model": "m", "engine": "compiled", "reason": "no compiler"},
        ],
        "commands": {"mri-qpan --help": [0.4, 0.5, 0.3]},
        "sizes": {"coils": sized},
    }
    text = report.to_markdown(results)
    assert "| mri-qpan --help | 0.40 (0.35 to 0.45) |" in text
    assert "| m | compiled | no compiler |" in text
    assert "| m | fused | 3.00 | 2.50 | 400 | 1,000 | packed 12 |" in text
    assert "Each coil more: 100 ms and 1e+03 kB; time grows as coils to the power 1.00." in text
    assert set(charts.charts(results)) == {"speed-coils"}
    assert [len(points) for points in processes.series(256).values()] == [4, 6, 5]


def test_the_yardstick_is_the_published_layer() -> None:
    """With no filters at work a stage is a gradient step: zero-filled images stay as they are."""
    network = Yardstick(2, symmetry=True)
    for stage in network.stages:
        torch.nn.init.zeros_(stage.g)
    mask = (torch.rand(16, 16) < 0.5).float()
    mask = torch.maximum(mask, torch.roll(mask.flip(0, 1), (1, 1), (0, 1)))  # real images stay real
    x = torch.fft.ifft2(mask * torch.fft.fft2(torch.rand(1, 1, 16, 16))).real
    with torch.no_grad():
        assert torch.allclose(network(x, mask), x, atol=1e-6)
        torch.nn.init.ones_(network.stages[0].g)
        assert not torch.allclose(network(x, mask), x, atol=1e-3)


def test_one_coil_measures_the_reference(quick: None) -> None:
    from mri_qpan.benchmark.speed import problem

    case = problem.head_case((32, 32), 2, "lines:0.5")
    made = single_coil(case)
    adjoint, normal = Problem(made.kspace, made.mps, np.ones_like(made.mask)).operator(2)
    assert adjoint.shape == (1, 32, 32)
    assert torch.allclose(normal(adjoint), adjoint, atol=1e-4)


def test_bad_options_are_refused(tmp_path: Path) -> None:
    for words, message in (
        (["--parts", "engines,all"], "--parts"),
        (["--threads", "0"], "--threads"),
    ):
        with pytest.raises(InputError, match=message):
            CliRunner().invoke(
                app, ["benchmark", "speed", "-o", str(tmp_path), *words], catch_exceptions=False
            )
