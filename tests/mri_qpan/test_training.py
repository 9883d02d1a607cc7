"""Training on a made-up bank: it learns, resumes to the bit, quantizes, and says what is missing."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from mri_qpan import models
from mri_qpan.errors import InputError
from mri_qpan.models import store
from mri_qpan.networks import NetworkConfig, ProximalNetwork
from mri_qpan.sampling_masks import ratio_of, spokes
from mri_qpan.training import loop, recipe, simulate
from mri_qpan.training.bank import Bank, build
from mri_qpan.training.loss import loss_of
from mri_qpan.training.validation import evaluate, validation_cases

RECIPE = """
name = "tiny"
{init}
groups = ["disc"]
steps = {steps}
learning_rate = 3e-3
warm_up = 5
sizes = [[24, 20], [20, 24]]
pixels = 960
ratios = [0.3, 0.6]
supervision = 0.5
constraint = 0.01
constrained = 1
seed = 1

[network]
system = "pan+"
layers = 2
filters = 4
channels = 2
{bits}
"""


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    """Compiling would take longer than these trainings."""
    monkeypatch.setattr(ProximalNetwork, "compile_step", lambda self: None)


@pytest.fixture(scope="module")
def bank():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:40j, -1:1:36j]
    images = []
    for _ in range(12):
        centre, radius = rng.uniform(-0.3, 0.3, 2), rng.uniform(0.2, 0.6)
        images.append(((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2).astype(np.float32))
    return Bank(images, ["disc"] * 9 + ["disc/val"] * 3)


@pytest.fixture(autouse=True)
def few_measurements(monkeypatch):
    """Ranges of what a network met, from few simulations."""
    monkeypatch.setattr(loop, "MEASURED", 3)


def load(folder, steps=6, init="", bits=""):
    path = folder / "tiny.toml"
    path.write_text(RECIPE.format(steps=steps, init=init, bits=bits))
    return recipe.load(str(path))


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


def test_a_recipe_like_one_with_a_start_can_begin_at_random(tmp_path):
    (tmp_path / "a.toml").write_text('name = "a"\nlike = "brain-pan++"\ninit = ""')
    assert recipe.load("brain-pan++").init == "brain-pan+"
    assert recipe.load(str(tmp_path / "a.toml")).init is None


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


@pytest.mark.parametrize("line", ["noise = 0.9", "enlarge = 0.5", "noise = -0.1", "enlarge = 3.0"])
def test_impossible_noise_and_size_are_refused(tmp_path, line):
    text = RECIPE.format(steps=1, init="published = true\n" + line, bits="")
    (tmp_path / "a.toml").write_text(text.replace("channels = 2", "channels = 1"))
    with pytest.raises(InputError, match=r"noise goes from 0 to 0\.5"):
        recipe.load(str(tmp_path / "a.toml"))


def test_noise_in_images_is_the_published_experiments(tmp_path):
    (tmp_path / "a.toml").write_text(RECIPE.format(steps=1, init="noise = 0.02", bits=""))
    with pytest.raises(InputError, match="published experiment's"):
        recipe.load(str(tmp_path / "a.toml"))


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


@pytest.mark.parametrize("name", recipe.shipped())
def test_shipped_recipes_load(name):
    plan = recipe.load(name)
    assert plan.name == name
    assert plan.init is None or plan.init in recipe.shipped()
    # Sets whose terms do not allow weights that ship stay out of every recipe.
    assert not set(plan.groups) & {"siat31", "knee_refinegan"}
    low, high = plan.ratios
    for number in plan.spokes:
        for size in plan.sizes:
            assert low - 0.005 <= ratio_of(spokes(size, number)) <= high + 0.005


def test_a_recipe_is_like_another_but_for_what_it_says(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nlike = "brain-pan+"\nsteps = 7\n[network]\npenalties = ["l1", "mcp"]\n')
    mine, base = recipe.load(str(path)), recipe.load("brain-pan+")
    network = dataclasses.replace(base.network, penalties=("l1", "mcp"))
    assert mine == dataclasses.replace(base, name="mine", steps=7, network=network)
    path.write_text('name = "mine"\nlike = "nobody"\n')
    with pytest.raises(InputError, match="nobody"):
        recipe.load(str(path))


def test_a_network_with_carried_features_goes_on_from_one_without(bank, tmp_path):
    plain = load(tmp_path, steps=3)
    path = run(plain, bank, tmp_path / "plain")
    (tmp_path / "tiny.toml").write_text((tmp_path / "tiny.toml").read_text() + "carry = true\n")
    plan = recipe.load(str(tmp_path / "tiny.toml"))
    found = models.load_model(str(run(plan, bank, tmp_path / "b", init=path)))
    assert found.config.carry
    assert found.card["training"]["steps_before"] == 3


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


@pytest.mark.parametrize("change", ["steps = 6", "system", "layers = 2", "name"])
def test_broken_recipes_are_refused(tmp_path, change):
    load(tmp_path)
    text = (tmp_path / "tiny.toml").read_text().replace(change, "nonsense = 1 #" + change)
    (tmp_path / "tiny.toml").write_text(text)
    with pytest.raises(InputError, match="recipe"):
        recipe.load(str(tmp_path / "tiny.toml"))
    with pytest.raises(InputError, match="choose from"):
        recipe.load("qpan++")


def test_bank_is_built_from_folders_and_survives_a_round_trip(tmp_path):
    import h5py
    import nibabel
    import scipy.io

    rng = np.random.default_rng(0)
    for name in ("pngs", "hearts", "complex", "head", "mm"):
        (tmp_path / name).mkdir()
    for name in ("1.png", "v_1.png"):
        Image.fromarray(rng.integers(0, 255, (30, 40), np.uint8)).save(tmp_path / "pngs" / name)
    for index in range(10):
        with h5py.File(tmp_path / "hearts" / f"im-{index}.mat", "w") as file:
            file["im_ori"] = rng.random((20, 30))
    scipy.io.savemat(tmp_path / "complex" / "a.mat", {"Img": rng.random((270, 16)) * 1j})
    head = np.zeros((12, 30, 30), np.float32)
    head[2:10, 5:25, 5:25] = 1
    nibabel.save(nibabel.Nifti1Image(head, np.diag([3.0, 1, 1, 1])), tmp_path / "head" / "t.nii.gz")
    np.savez(
        tmp_path / "mm" / "v.npz", vol=np.ones((20, 40, 40), np.int16), spacing_mm=np.array([1, 0.5, 0.5])
    )
    bank = build(tmp_path)
    assert bank.groups.count("pngs") == bank.groups.count("pngs/val") == 1
    assert bank.groups.count("hearts/val") == 1
    assert bank.of({"hearts"}).images[0].shape == (30, 20)
    assert bank.of({"complex"}).images[0].shape == (256, 16)
    assert {image.shape for image in bank.of({"head"}).images} == {(30, 30)}
    assert (20, 20) in {image.shape for image in bank.of({"mm"}).images}
    bank.save(tmp_path / "bank.npz")
    again = Bank.load(tmp_path / "bank.npz")
    assert again.groups == bank.groups
    for a, b in zip(bank.images, again.images, strict=True):
        assert np.allclose(a, b, atol=2e-4)
    (tmp_path / "bad.npz").write_bytes(b"no")
    scipy.io.savemat(tmp_path / "complex" / "foreign.mat", {"other": np.ones(3)})
    with pytest.raises(InputError, match="foreign"):
        build(tmp_path)
    with pytest.raises(InputError, match="bad"):
        Bank.load(tmp_path / "bad.npz")


def test_one_step_gives_one_batch_whatever_the_order(bank):
    data = simulate.Simulation(bank.of({"disc"}), [(20, 24), (24, 20)], 960, (0.3, 0.6), 5, 10)
    assert len(data) == 10
    first, again = data[7], data[7]
    assert torch.equal(first.kspace, again.kspace)
    assert len(first.mask) == 2
    assert not torch.equal(data[8].target[0, :20, :20], first.target[0, :20, :20])


def test_the_published_masks_and_shares_of_the_groups(bank):
    shares = {"disc": 3.0, sorted(set(bank.groups) - {"disc"})[0]: 1.0}
    chosen = bank.of(set(shares))
    data = simulate.Simulation(chosen, [(64, 64)], 64 * 64, (0.3, 0.6), 5, 200, True, (5, 9), shares)
    masks = [spokes((64, 64), number) for number in (5, 9)]
    found = [
        [bool((case.mask[0].numpy() == mask).all()) for mask in masks]
        for case in map(data.__getitem__, range(200))
    ]
    assert all(sum(row) == 1 for row in found)
    assert 60 < sum(row[0] for row in found) < 140
    assert data._probabilities.sum() == pytest.approx(1)
    drawn = [name == "disc" for name in chosen.groups]
    assert data._probabilities[drawn].sum() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("shares = [1, 2, 3, 4]", "one above zero for each of groups"),
        ("shares = [0]", "one above zero for each of groups"),
        ('validation = ["disc"]', "a group that is trained on"),
    ],
)
def test_a_recipe_that_contradicts_itself(tmp_path, line, words):
    path = tmp_path / "tiny.toml"
    path.write_text(line + "\n" + RECIPE.format(steps=6, init="", bits=""))
    with pytest.raises(InputError, match=words):
        recipe.load(str(path))


def test_validation_images_can_be_chosen(bank):
    all_of = validation_cases(bank)
    group = next(name for name in bank.groups if name.endswith("/val"))
    chosen = validation_cases(bank, names=(group,))
    assert 0 < len(chosen) <= len(all_of)
    spoken = validation_cases(bank, True, names=(group,))
    assert all(case.mps is None for case in spoken)
    assert np.array_equal(spoken[0].mask[0].numpy(), spokes((256, 256), 55))
    one_ratio = validation_cases(bank, True, names=(group,), numbers=(117,))
    assert all(np.array_equal(case.mask[0].numpy(), spokes((256, 256), 117)) for case in one_ratio)


def test_validation_is_the_same_every_time(bank):
    a, b = validation_cases(bank), validation_cases(bank)
    assert len(a) == 3
    assert all(torch.equal(x.kspace, y.kspace) for x, y in zip(a, b, strict=True))
    network = ProximalNetwork(NetworkConfig(layers=1, filters=2))
    score = evaluate(network, a, torch.device("cpu"))
    assert score == evaluate(network, b, torch.device("cpu"))
    assert 0 < score.psnr_zero_filled < 100


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
