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


class TestFilesInTheWild:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "set").mkdir()
        Image.fromarray(np.full((16, 12), 7, np.uint8)).save(tmp_path / "set" / "fine.png")
        return tmp_path / "set"

    def volume(self, path, array, spacing=(1, 1, 1)):
        import nibabel

        nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)

    def built(self, folder):
        told = []
        return build(folder.parent, told.append), told

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.png", "a.mat", "a.npz", "A.PNG", "A.NII.GZ"])
    @pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
    def test_a_truncated_file_is_named(self, folder, name, share):
        import scipy.io

        path = folder / name
        whole = np.random.default_rng(0).random((40, 40, 40)).astype(np.float32)
        kind = name.lower().partition(".")[2]
        source = folder.parent / f"whole.{kind}"
        if kind.startswith("nii"):
            self.volume(source, whole)
        elif kind == "png":
            Image.fromarray((255 * whole[0]).astype(np.uint8)).save(source)
        elif kind == "mat":
            scipy.io.savemat(source, {"Img": whole[0]})
        else:
            np.savez_compressed(source, vol=whole, spacing_mm=np.ones(3))
        path.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
        with pytest.raises(InputError, match=rf"{name}: no training image \(.+\); move it"):
            build(folder.parent)

    @pytest.mark.parametrize(
        ("name", "array", "words"),
        [
            ("a.nii", np.ones((20, 20, 20, 5), np.float32), "20 x 20 x 20 x 5, not one volume"),
            ("a.nii", np.ones((20, 20), np.float32), "20 x 20, not one volume"),
            ("a.npz", {"vol": np.ones((20, 20, 20))}, "needs spacing_mm"),
            ("a.npz", {"vol": np.ones((20, 20, 20)), "spacing_mm": np.array([1, 0, 1])}, "1 x 0 x 1 mm"),
            ("a.npz", {"vol": np.ones((20, 20, 20)), "spacing_mm": np.ones(2)}, "1 x 1 mm"),
            ("a.npz", {"vol": np.full((9, 9, 9), "x"), "spacing_mm": np.ones(3)}, "not of numbers"),
            ("a.npz", {"images": np.ones((20, 20))}, "no .*knees.* in it"),
            ("a.mat", {"Img": np.ones((4, 4, 4))}, "4 x 4 x 4, not an image"),
            ("a.mat", {"Img": np.ones((4, 40))}, "at least 8 x 8"),
        ],
    )
    def test_what_is_no_image_is_said(self, folder, name, array, words):
        import scipy.io

        path = folder / name
        if name.endswith(".nii"):
            self.volume(path, array)
        elif name.endswith(".mat"):
            scipy.io.savemat(path, array)
        else:
            np.savez(path, **array)
        with pytest.raises(InputError, match=rf"{name}: no training image \(.*{words}"):
            build(folder.parent)

    def test_damaged_headers_are_named(self, folder, monkeypatch):
        self.volume(folder / "a.nii", np.ones((20, 20, 20), np.float32))
        whole = bytearray((folder / "a.nii").read_bytes())
        whole[70:72] = b"\xff\x7f"  # the kind of number
        (folder / "a.nii").write_bytes(whole)
        with pytest.raises(InputError, match=r"a\.nii: no training image \(.+\); move it"):
            build(folder.parent)
        (folder / "a.nii").unlink()
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        with pytest.raises(InputError, match=r"fine\.png: no training image \(.+\); move it"):
            build(folder.parent)

    @pytest.mark.parametrize(("number", "kept"), [(1, 0), (2, 1), (9, 1), (15, 1), (20, 2)])
    def test_the_last_tenth_of_matlab_files_is_for_validation(self, folder, number, kept):
        import scipy.io

        (folder / "fine.png").unlink()
        for index in range(number):
            scipy.io.savemat(folder / f"v_{index:02}.mat", {"Img": np.full((16, 12), index + 1.0)})
        bank, _ = self.built(folder)
        assert bank.groups == ["set"] * (number - kept) + ["set/val"] * kept

    def test_what_is_left_out_is_told(self, folder):
        head = np.zeros((30, 30, 30), np.float32)
        head[5:25, 5:25, 5:25] = 1
        self.volume(folder / "coarse.nii", head, (2, 2, 2))
        self.volume(folder / "blank.nii", 0 * head)
        self.volume(folder / "masked.nii", np.where(head > 0, head, np.nan))
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "black.png")
        (folder / "photo.jpg").write_bytes(b"any")
        (folder / "README.md").write_text("any")
        (folder / "._fine.png").write_bytes(b"a Mac's")
        (folder / "folder.png").mkdir()
        (folder.parent / ".git").mkdir()
        (folder.parent / ".git" / "x.png").write_bytes(b"no picture")
        bank, told = self.built(folder)
        assert len(bank.of({"set"}).images) > 10
        assert all(np.isfinite(image).all() and image.max() == 1 for image in bank.images)
        words = {line.rpartition("/")[2].partition(":")[0]: line for line in told}
        assert set(words) == {"coarse.nii", "blank.nii", "masked.nii", "black.png", "set"}
        assert "voxels of 2 x 2 x 2 mm" in words["coarse.nii"]
        assert words["blank.nii"].endswith("blank, left out")
        assert "no numbers taken for 0" in words["masked.nii"]
        assert "1 blank images left out" in words["black.png"]
        assert "1 files passed over (photo.jpg" in words["set"]

    def test_complex_volumes_give_magnitudes_and_matlabs_complex_images_stay(self, folder):
        import h5py

        head = np.zeros((20, 20, 20), np.complex64)
        head[3:17, 3:17, 3:17] = 1j
        self.volume(folder / "phase.nii", head)
        with h5py.File(folder / "im.mat", "w") as file:
            pairs = np.zeros((20, 30), [("real", "<f8"), ("imag", "<f8")])
            pairs["imag"] = 2
            file["im_ori"] = pairs
        bank, told = self.built(folder)
        assert not told
        assert {image.dtype.kind for image in bank.images} == {"f", "c"}
        (image,) = (image for image in bank.images if np.iscomplexobj(image))
        assert np.allclose(image, 1j)
        assert image.shape == (30, 20)

    def test_series_of_one_volume_are_volumes(self, folder):
        head = np.zeros((20, 20, 20, 1), np.float32)
        head[3:17, 3:17, 3:17] = 1
        self.volume(folder / "one.nii", head)
        bank, told = self.built(folder)
        assert len(bank.images) > 10
        assert not told

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
    def test_a_truncated_bank_is_said(self, tmp_path, bank, share):
        path = tmp_path / "bank.npz"
        bank.save(path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(InputError, match="not an image bank"):
            Bank.load(path)


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
