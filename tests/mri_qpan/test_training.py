"""Training on a made-up bank: it learns, resumes to the bit, quantizes, and says what is missing."""

import csv
import dataclasses
import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_trainings import RECIPE, discs, load

from mri_qpan import models
from mri_qpan.errors import InputError, ReconError, TrainingStoppedError
from mri_qpan.models import store
from mri_qpan.networks import NetworkConfig, ProximalNetwork
from mri_qpan.training import loop, recipe
from mri_qpan.training.bank import Bank
from mri_qpan.training.loss import loss_of


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    """Compiling would take longer than these trainings."""
    monkeypatch.setattr(ProximalNetwork, "compile_step", lambda self: None)


@pytest.fixture(scope="module")
def bank():
    return discs()


@pytest.fixture(autouse=True)
def few_measurements(monkeypatch):
    """Ranges of what a network met, from few simulations."""
    monkeypatch.setattr(loop, "MEASURED", 3)


def run(plan, bank, folder, **options):
    schedule = options.pop("schedule", loop.Schedule())
    return loop.train(plan, bank, folder, device=torch.device("cpu"), schedule=schedule, **options)


def test_training_learns_and_leaves_what_it_promises(bank, tmp_path):
    losses = []
    path = run(
        load(tmp_path, steps=160),
        bank,
        tmp_path / "out",
        report=lambda step, steps, loss: losses.append(loss),
    )
    assert np.mean(losses[-30:]) < 0.7 * np.mean(losses[:10])
    model = models.load_model(str(path))
    assert model.card["training"]["steps"] == 160
    assert model.card["figures"]["validation"]["psnr"] > 0
    low, high = model.card["training"]["seen"]["moved"]
    assert 0 < low < high
    rows = list(csv.DictReader((tmp_path / "out" / "log.csv").read_text().splitlines()))
    assert float(rows[-1]["psnr"]) == pytest.approx(model.card["figures"]["validation"]["psnr"], abs=1e-3)
    assert (tmp_path / "out" / "validation.png").exists()


def test_a_stopped_training_resumes_to_the_bit(bank, tmp_path):
    plan = load(tmp_path)
    whole = models.load_model(str(run(plan, bank, tmp_path / "whole")))

    def stop_at_three(step, steps, loss):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError, match=r"step 3 of 6: the same command goes on from .*parts"):
        run(plan, bank, tmp_path / "parts", report=stop_at_three)
    assert not (tmp_path / "parts" / "tiny.safetensors").exists()
    parts = models.load_model(str(run(plan, bank, tmp_path / "parts")))
    assert parts.card["training"]["steps"] == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_quantized_training_starts_from_the_full_precision_model(bank, tmp_path, bits):
    full = run(load(tmp_path, steps=20), bank, tmp_path / "full")
    plan = load(tmp_path, steps=20, init='init = "tiny"', bits=f"bits = {bits}")
    model = models.load_model(str(run(plan, bank, tmp_path / "quantized", init=full)))
    assert model.config.bits == bits
    assert model.card["training"]["init"].startswith("tiny ")
    for layer in model.layers:
        for convolution in layer.convolutions.values():
            levels = (convolution() / convolution.scale).round(decimals=3).unique()
            assert len(levels) <= 2**bits


def test_the_published_experiment_trains_a_network_of_one_channel(bank, tmp_path):
    path = tmp_path / "real.toml"
    text = RECIPE.format(steps=80, init="published = true", bits="").replace("channels = 2", "channels = 1")
    path.write_text(text.replace("supervision = 0.5", "supervision = 0.0"))
    losses = []
    found = run(
        recipe.load(str(path)),
        bank,
        tmp_path / "out",
        report=lambda step, steps, loss: losses.append(loss),
    )
    assert np.mean(losses[-30:]) < 0.8 * np.mean(losses[:10])
    assert models.load_model(str(found)).config.channels == 1
    path.write_text(text.replace("published = true", ""))
    with pytest.raises(InputError, match="one channel"):
        recipe.load(str(path))


def test_training_starts_from_a_network_of_other_penalties(bank, tmp_path):
    config = NetworkConfig(layers=2, filters=4, penalties=("scad", "l1"))
    source = ProximalNetwork(config)
    for layer in source.layers:
        layer.raw_thresholds.data = torch.tensor([-3.0, -4.0])
    path = tmp_path / "two.safetensors"
    store.save(path, source, "two", {"data": [], "training": {}, "figures": {}, "licence": ""})
    plan = load(tmp_path, steps=1, bits='penalties = ["l1", "mcp", "scad"]')
    plan = dataclasses.replace(plan, learning_rate=1e-9)
    layer = models.load_model(str(run(plan, bank, tmp_path / "three", init=path))).layers[1]
    # MCP is new: it starts between the two.
    assert layer.raw_thresholds.tolist() == pytest.approx([-4.0, -3.5, -3.0], abs=1e-4)
    assert torch.allclose(layer.convolutions["G"](), source.layers[1].convolutions["G"](), atol=1e-4)


def test_a_training_goes_on_longer_but_not_with_other_settings(bank, tmp_path):
    plan = load(tmp_path, steps=4)
    out = tmp_path / "out"
    run(plan, bank, out)
    with pytest.raises(InputError, match=r"other settings of tiny \(constraint, seed\)"):
        run(dataclasses.replace(plan, constraint=0.02, seed=2), bank, out)
    longer = dataclasses.replace(plan, steps=6, learning_rate=1e-3)
    assert models.load_model(str(run(longer, bank, out))).card["training"]["planned_steps"] == 6


def test_training_without_images_to_validate_on_ends_at_once(bank, tmp_path):
    seen = []
    with pytest.raises(InputError, match="no images to validate on"):
        run(load(tmp_path), bank.of({"disc"}), tmp_path / "out", report=lambda *told: seen.append(told))
    assert not seen


def test_signals_are_the_callers_again_after_training(bank, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(load(tmp_path, steps=2), bank, tmp_path / "out")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_training_runs_in_any_thread(bank, tmp_path):
    plan = load(tmp_path, steps=2)
    with ThreadPoolExecutor(1) as pool:
        path = pool.submit(run, plan, bank, tmp_path / "out").result()
    assert models.load_model(str(path)).card["training"]["steps"] == 2


def test_a_checkpoint_of_another_order_is_refused(bank, tmp_path):
    text = RECIPE.format(steps=4, init="", bits="").replace('system = "pan+"', 'system = "admm-net"')
    (tmp_path / "a.toml").write_text(text)
    plan = recipe.load(str(tmp_path / "a.toml"))
    run(plan, bank, tmp_path / "out", schedule=loop.Schedule(minutes=1e-6))
    path = tmp_path / "out" / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    last = max(n for n in tensors if n.startswith("optimizer.1.") and n.endswith(".exp_avg"))
    save_file(tensors | {last: torch.zeros(3, 5)}, path, metadata)
    with pytest.raises(InputError, match="ordered its parameters otherwise"):
        run(plan, bank, tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_checkpoint_is_said(bank, tmp_path, share):
    plan = load(tmp_path, steps=2)
    run(plan, bank, tmp_path / "out")
    path = tmp_path / "out" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"checkpoint\.safetensors is damaged \(.+\): remove it"):
        run(plan, bank, tmp_path / "out")


def test_a_checkpoint_that_cannot_be_written_is_said(bank, tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ReconError, match=r"checkpoint\.safetensors could not be written: .*No space left"):
        run(load(tmp_path, steps=2), bank, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_other_validation_images_judge_anew(bank, tmp_path):
    plan = load(tmp_path, steps=2)
    path = run(plan, bank, tmp_path / "out")
    rng = np.random.default_rng(0)
    hard = Bank([rng.random(image.shape).astype(np.float32) for image in bank.images], bank.groups)
    first = models.load_model(str(path)).card["figures"]["validation"]["psnr"]
    run(dataclasses.replace(plan, steps=4), hard, tmp_path / "out")
    card = models.load_model(str(path)).card
    assert card["training"]["steps"] == 4
    assert card["figures"]["validation"]["psnr"] < first


def test_a_training_does_not_go_on_from_another_model(bank, tmp_path):
    first = run(load(tmp_path, steps=2), bank, tmp_path / "first")
    second = run(load(tmp_path, steps=3), bank, tmp_path / "second")
    plan = load(tmp_path, steps=4, init='init = "tiny"', bits="bits = 2")
    run(plan, bank, tmp_path / "out", init=first)
    longer = dataclasses.replace(plan, steps=5)
    with pytest.raises(InputError, match=r"began from tiny .*, not from .*second"):
        run(longer, bank, tmp_path / "out", init=second)
    run(longer, bank, tmp_path / "out", init=first)
    run(dataclasses.replace(plan, steps=6), bank, tmp_path / "out")
    with pytest.raises(InputError, match="began at random"):
        run(load(tmp_path, steps=3), bank, tmp_path / "second", init=first)


def test_minutes_end_a_training(bank, tmp_path):
    path = run(load(tmp_path, steps=100000), bank, tmp_path / "out", schedule=loop.Schedule(minutes=0.02))
    assert models.load_model(str(path)).card["training"]["steps"] < 100000


def test_what_does_not_fit_is_said(bank, tmp_path):
    plan = load(tmp_path)
    with pytest.raises(InputError, match="disc"):
        run(plan, Bank(bank.images, ["square"] * 12), tmp_path / "a")
    path = run(plan, bank, tmp_path / "b")
    with pytest.raises(InputError, match="does not fit"):
        run(
            recipe.load("qpan+-1bit"),
            Bank(bank.images, list(recipe.load("qpan+-1bit").groups) + ["x"] * 7),
            tmp_path / "c",
            init=path,
        )
    (tmp_path / "other.toml").write_text((tmp_path / "tiny.toml").read_text().replace('"tiny"', '"other"'))
    with pytest.raises(InputError, match="belongs to recipe tiny"):
        run(recipe.load(str(tmp_path / "other.toml")), bank, tmp_path / "b")


def test_a_network_with_carried_features_goes_on_from_one_without(bank, tmp_path):
    plain = load(tmp_path, steps=3)
    path = run(plain, bank, tmp_path / "plain")
    (tmp_path / "tiny.toml").write_text((tmp_path / "tiny.toml").read_text() + "carry = true\n")
    plan = recipe.load(str(tmp_path / "tiny.toml"))
    found = models.load_model(str(run(plan, bank, tmp_path / "b", init=path)))
    assert found.config.carry
    assert found.card["training"]["steps_before"] == 3
    assert found.card["training"]["own_steps_before"] == 3  # by one recipe


def test_a_network_learns_from_the_one_that_it_starts_from(bank, tmp_path, monkeypatch):
    full = run(load(tmp_path, steps=20), bank, tmp_path / "full")
    text = RECIPE.format(steps=20, init='init = "tiny"\ndistillation = 1.0', bits="bits = 1")
    (tmp_path / "tiny.toml").write_text(text)
    plan = recipe.load(str(tmp_path / "tiny.toml"))
    assert plan.distillation == 1.0
    with pytest.raises(InputError, match="give it with --init"):
        run(plan, bank, tmp_path / "b")
    path = run(plan, bank, tmp_path / "b", init=full)
    assert models.load_model(str(path)).config.bits == 1


def test_what_a_teacher_makes_takes_the_targets_place(bank, tmp_path):
    (tmp_path / "a.toml").write_text(RECIPE.format(steps=1, init="distillation = 1.0", bits=""))
    plan = dataclasses.replace(recipe.load(str(tmp_path / "a.toml")), supervision=0.0, constraint=0.0)
    case = loop._simulation(plan, bank, 0, 1, None)[0]
    network, teacher = ProximalNetwork(plan.network), ProximalNetwork(plan.network)
    with torch.no_grad():
        apart = loss_of(network, case, frozenset(), plan, teacher)
        teacher.load_state_dict(network.state_dict())
        assert loss_of(network, case, frozenset(), plan, teacher) < 1e-6 * apart
        half = dataclasses.replace(plan, distillation=0.5)
        assert loss_of(network, case, frozenset(), half, teacher) > 0


def test_real_images_count_by_the_logarithm_of_their_error(bank, tmp_path):
    text = RECIPE.format(steps=1, init="published = true", bits="").replace("channels = 2", "channels = 1")
    (tmp_path / "a.toml").write_text(text)
    plan = dataclasses.replace(recipe.load(str(tmp_path / "a.toml")), supervision=0.0, constraint=0.0)
    case = loop._simulation(plan, bank, 0, 1, None)[0]
    assert not case.target.is_complex()
    network = ProximalNetwork(plan.network)
    encoding = case.encoding()
    with torch.no_grad():
        image = network(encoding.adjoint(case.kspace), encoding.normal)
        errors = (image - case.target).square().flatten(1).mean(1)
        found = loss_of(network, case, frozenset(), plan, None)
    torch.testing.assert_close(found, 1e-3 * errors.log().mean())


def test_two_processes_train_one_network(bank, tmp_path):
    """Under torchrun the processes see different data, average their gradients and stop together."""
    load(tmp_path, steps=4)
    bank.save(tmp_path / "bank.npz")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "mri_qpan.cli", "train", "--recipe", str(tmp_path / "tiny.toml")]
    command += ["--data", str(tmp_path / "bank.npz"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    model = models.load_model(str(tmp_path / "out" / "tiny.safetensors"))
    assert model.card["training"]["processes"] == 2
    assert model.card["training"]["steps"] == 4
