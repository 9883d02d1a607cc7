"""What trainings draw from: the bank, its simulated measurements, the validation cases."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_trainings import discs

from mri_qpan.errors import InputError
from mri_qpan.networks import NetworkConfig, ProximalNetwork
from mri_qpan.sampling_masks import spokes
from mri_qpan.training import simulate
from mri_qpan.training.bank import Bank, build
from mri_qpan.training.validation import evaluate, validation_cases


@pytest.fixture(scope="module")
def bank():
    return discs()


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
    both = validation_cases(bank, True, names=(group,), brains=True)
    assert len(both) == 2 * len(spoken)
    for head, same, brain in zip(spoken, both, both[len(spoken) :], strict=False):
        assert torch.equal(head.target, same.target)
        assert torch.equal(head.mask, brain.mask)
    # Discs too small for brains stay, with noise or without.
    changed = [not torch.equal(h.target, b.target) for h, b in zip(both, both[len(spoken) :], strict=False)]
    assert any(changed)


def test_validation_is_the_same_every_time(bank):
    a, b = validation_cases(bank), validation_cases(bank)
    assert len(a) == 3
    assert all(torch.equal(x.kspace, y.kspace) for x, y in zip(a, b, strict=True))
    network = ProximalNetwork(NetworkConfig(layers=1, filters=2))
    score = evaluate(network, a, torch.device("cpu"))
    assert score == evaluate(network, b, torch.device("cpu"))
    assert 0 < score.psnr_zero_filled < 100
