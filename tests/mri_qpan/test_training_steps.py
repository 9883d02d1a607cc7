"""What one step of a training does: rates, clipping, averages, scales, and which model is kept."""

import copy
import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_trainings import discs, load

from mri_qpan.networks import ProximalNetwork
from mri_qpan.quantize import fit_scale, levels
from mri_qpan.training import loop
from mri_qpan.training import run as training_run
from mri_qpan.training.recipe import Recipe
from mri_qpan.training.run import Run
from mri_qpan.training.simulate import Case
from mri_qpan.training.validation import Score, evaluate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling would take longer than these trainings."""
    monkeypatch.setattr(ProximalNetwork, "compile_step", lambda self: None)


def begun(folder: Path, bits: str = "") -> tuple[Run, Case]:
    """Return a training before its first step, and a case."""
    plan = load(folder, bits=bits)
    return Run(plan, folder, CPU, None), loop._simulation(plan, discs(), 0, 1, None)[0]


def weights_of(network: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


@pytest.mark.parametrize("bits", [1, 3])
def test_scales_follow_the_weights_step_by_step(tmp_path: Path, bits: int) -> None:
    run, case = begun(tmp_path, f"bits = {bits}")
    convolutions = [c for layer in run.network.layers for c in layer.convolutions.values()]
    before = [c.scale.clone() for c in convolutions]
    run.advance(case, 1e-2)
    for convolution, old in zip(convolutions, before, strict=True):
        weight = convolution.weight.detach()
        target = fit_scale(weight, levels(weight, old, bits), "filter")
        keep = 0.9 if bits > 1 else 0.0
        torch.testing.assert_close(convolution.scale, keep * old + (1 - keep) * target)
    assert any(bool((c.scale != old).any()) for c, old in zip(convolutions, before, strict=True))


def test_a_batch_without_a_finite_gradient_changes_no_weight(tmp_path: Path) -> None:
    run, case = begun(tmp_path)
    before = weights_of(run.network)
    run.advance(dataclasses.replace(case, kspace=case.kspace * float("nan")), 1e-2)
    assert all(map(torch.equal, before, weights_of(run.network)))
    run.advance(case, 1e-2)
    after = weights_of(run.network)
    assert all(bool(torch.isfinite(p).all()) for p in after)
    assert not all(map(torch.equal, before, after))


def test_weights_are_averaged_over_the_steps(tmp_path: Path) -> None:
    run, case = begun(tmp_path)
    expected = weights_of(run.network)
    for step in range(1, 5):
        run.advance(case, 1e-2)
        keep = (1 + step) / (10 + step)
        new = weights_of(run.network)
        expected = [keep * mean + (1 - keep) * value for mean, value in zip(expected, new, strict=True)]
    for mean, value in zip(run.average.parameters(), expected, strict=True):
        torch.testing.assert_close(mean, value)
    run.step = 10**6
    before, _ = weights_of(run.average), run.advance(case, 1e-2)
    for mean, old, value in zip(run.average.parameters(), before, weights_of(run.network), strict=True):
        torch.testing.assert_close(mean.detach(), 0.999 * old + 0.001 * value)


def test_gradients_are_clipped_and_scalars_learn_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, case = begun(tmp_path)
    real = training_run.loss_of
    monkeypatch.setattr(training_run, "loss_of", lambda *arguments: 1e4 * real(*arguments))
    run.advance(case, 1e-3)
    norm = torch.stack([p.grad.norm() for p in run.network.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(1, rel=1e-3)
    rates = {p.ndim: group["lr"] for o in run.optimizers for group in o.param_groups for p in group["params"]}
    assert rates.pop(4) == pytest.approx(1e-3)
    assert list(rates.values()) == [pytest.approx(1e-2)] * 2


@pytest.mark.parametrize(
    ("step", "progress", "expected"),
    [(0, 0.0, 0.2), (3, 0.0, 0.8), (4, 0.0, 1.0), (50, 0.5, 0.505), (99, 1.0, 0.01), (99, 1.7, 0.01)],
)
def test_the_rate_warms_up_and_falls_like_a_cosine(
    tmp_path: Path, step: int, progress: float, expected: float
) -> None:
    plan = load(tmp_path, steps=100)  # with five steps of warm-up
    assert loop._learning_rate(plan, step, progress) == pytest.approx(expected * plan.learning_rate)


def test_minutes_lower_the_rate_as_steps_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    real = loop._learning_rate

    def note(recipe: Recipe, step: int, progress: float) -> float:
        asked.append(progress)
        return real(recipe, step, progress)

    monkeypatch.setattr(loop, "_learning_rate", note)
    monkeypatch.setattr(loop, "MEASURED", 1)
    seconds = itertools.count()
    # Of this module alone: other threads of the process live by the real one.
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    plan = load(tmp_path, steps=10**6)
    schedule = loop.Schedule(minutes=1.0, validate_every=1e9, save_every=1e9)
    loop.train(plan, discs(), tmp_path / "out", device=CPU, schedule=schedule)
    assert asked[0] < 0.1
    assert asked == sorted(asked)
    assert 0.9 < asked[-1] < 1
    assert len(asked) < 100


def test_only_a_better_model_replaces_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, case = begun(tmp_path)
    scores = iter([30.0, 20.0, 31.0])
    monkeypatch.setattr(
        training_run, "evaluate", lambda *_: Score(next(scores), 10.0, float("nan"), float("nan"))
    )
    kept = []
    for _ in range(3):
        run.advance(case, 1e-2)
        run.validate([case], [])
        kept.append(run.model_file.read_bytes())
    assert kept[0] == kept[1] != kept[2]
    assert run.best == 31


def test_the_average_is_judged_with_the_scales_that_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, case = begun(tmp_path, "bits = 2")
    for _ in range(3):
        run.advance(case, 1e-2)
    seen: list[dict[str, Any]] = []

    def note(network: torch.nn.Module, *_: Any) -> Score:
        seen.append({name: value.clone() for name, value in network.named_buffers()})
        return Score(1.0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(training_run, "evaluate", note)
    run.validate([case], [])
    trained = dict(run.network.named_buffers())
    assert trained
    for name, value in seen[0].items():
        assert torch.equal(value, trained[name]), name


def test_the_published_figure_is_of_pixels_in_their_range() -> None:
    target = torch.ones(1, 16, 16)
    case = Case(torch.zeros(1, 1, 16, 16, dtype=torch.complex64), torch.ones(1, 16, 16).bool(), None, target)

    class Bright(torch.nn.Module):
        def forward(self, adjoint: torch.Tensor, normal: Any) -> torch.Tensor:
            return torch.full_like(adjoint, 1.5)

    network: Any = Bright()
    assert evaluate(network, [case], CPU).psnr > 150
    half: Any = copy.deepcopy(network)
    half.forward = lambda adjoint, normal: torch.full_like(adjoint, 0.5)
    assert evaluate(half, [case], CPU).psnr == pytest.approx(6.0206, abs=1e-3)
