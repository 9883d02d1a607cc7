import shutil
import subprocess

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mri_qpan.sampling_masks import MaskError, load_mask, make_mask, mask_hash, ratio_of, save_mask

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")

PUBLISHED = {10: 0.1022, 20: 0.2019, 30: 0.3020, 40: 0.4009, 50: 0.4998}


@pytest.fixture
def mask():
    return make_mask("poisson", (37, 50), 0.3, seed=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("masks")


@pytest.mark.parametrize("suffix", [".npy", ".mat", ".cfl", ".hdr", ".png", ".PNG"])
@settings(deadline=None, max_examples=15)
@given(mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_round_trip(folder, suffix, mask):
    mask[0, 0] = True
    save_mask(folder / f"mask{suffix}", mask)
    loaded = load_mask(folder / f"mask{suffix}")
    assert loaded.dtype == np.bool_
    np.testing.assert_array_equal(loaded, mask)


@pytest.mark.parametrize("suffix", [".npy", ".mat", ".cfl"])
def test_round_trip_of_a_volume(tmp_path, suffix):
    volume = make_mask("random2d", (9, 14, 5), 0.3)
    save_mask(tmp_path / f"mask{suffix}", volume)
    np.testing.assert_array_equal(load_mask(tmp_path / f"mask{suffix}"), volume)
    assert len(list(tmp_path.iterdir())) == (2 if suffix == ".cfl" else 1)


def test_a_png_holds_no_volume(tmp_path):
    with pytest.raises(MaskError, match=r"holds \(y, x\) only"):
        save_mask(tmp_path / "mask.png", make_mask("random2d", (9, 14, 5), 0.3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("percent", PUBLISHED)
def test_published_masks(shared_data, percent):
    published = load_mask(shared_data / "masks" / f"mask_{percent}.mat")
    assert published.shape == (256, 256)
    assert ratio_of(published) == pytest.approx(PUBLISHED[percent], abs=5e-5)
    assert published[125:132, 125:132].all()


def test_mat_has_the_zero_frequency_at_the_corner(tmp_path, mask):
    save_mask(tmp_path / "mask.mat", mask)
    corner = scipy.io.loadmat(tmp_path / "mask.mat")["mask_matrix"]
    assert corner.dtype == np.uint8
    assert corner[0, 0] == mask[18, 25]
    np.testing.assert_array_equal(corner, np.roll(mask, (-18, -25), axis=(0, 1)))


@pytest.mark.parametrize("shape", [(37, 50), (6, 37, 50)])
def test_matlab_73(tmp_path, shape):
    mask = make_mask("random2d", shape, 0.3)
    with h5py.File(tmp_path / "mask.mat", "w", userblock_size=512) as matlab:
        matlab["mask_matrix"] = np.fft.ifftshift(mask).astype(np.uint8).T
    with (tmp_path / "mask.mat").open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.mat"), mask)


@needs_bart
def test_bart_reads_our_cfl(tmp_path, mask):
    save_mask(tmp_path / "mask.cfl", mask)
    shown = subprocess.run(
        ["bart", "show", "-m", "mask"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "complex float" in shown.stdout
    assert shown.stdout.split("AoD:")[1].split()[:3] == ["50", "37", "1"]
    # One sample, at z = 0, y = 18, x = 25, picked out by BART.
    for axis, place in ((0, 25), (1, 18)):
        subprocess.run(["bart", "slice", str(axis), str(place), "mask", "mask"], cwd=tmp_path, check=True)
    value = subprocess.run(["bart", "show", "mask"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert complex(value.stdout.strip().replace("i", "j")) == 1


@needs_bart
def test_reads_the_masks_that_bart_makes(tmp_path):
    command = ["bart", "poisson", "-Y", "40", "-Z", "30", "-y", "1.5", "-z", "1.5", "-C", "6", "pattern"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    loaded = load_mask(tmp_path / "pattern.cfl")
    assert loaded.shape == (30, 40)
    assert loaded[12:18, 17:23].all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.complex64])
def test_any_type_of_zeros_and_ones(tmp_path, mask, dtype):
    np.save(tmp_path / "mask.npy", mask.astype(dtype))
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.npy"), mask)


@pytest.mark.parametrize("mode", ["1", "L", "I;16"])
def test_grey_images_of_zeros_and_ones(tmp_path, mask, mode):
    image = (
        Image.fromarray(mask)
        if mode == "1"
        else Image.fromarray(mask.astype({"L": "u1", "I;16": "u2"}[mode]))
    )
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.png"), mask)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 5), 0.5), r"0.5 stands at \(0, 0\)"),
        (np.array([[1.0, np.nan]]), r"nan stands at \(0, 1\)"),
        (np.ones(5), r"has shape \(5,\)"),
        (np.ones((2, 2, 2, 2)), "has shape"),
        (np.ones((0, 4)), "has shape"),
        (np.zeros((4, 4)), "no sample at all"),
        (np.array([["a", "b"]]), "holds <U1"),
    ],
)
def test_an_array_that_is_no_mask(tmp_path, array, message):
    np.save(tmp_path / "mask.npy", array)
    with pytest.raises(MaskError, match=message):
        load_mask(tmp_path / "mask.npy")
    with pytest.raises(MaskError, match=message):
        save_mask(tmp_path / "other.npy", array)
    assert not (tmp_path / "other.npy").exists()


@pytest.mark.parametrize("suffix", [".npy", ".mat", ".cfl", ".hdr", ".png"])
def test_a_missing_file(tmp_path, suffix):
    with pytest.raises(MaskError, match=f"mask{suffix}: no such file"):
        load_mask(tmp_path / f"mask{suffix}")


@pytest.mark.parametrize("name", ["mask.txt", "mask"])
def test_an_unknown_suffix(tmp_path, mask, name):
    with pytest.raises(MaskError, match="name ends in"):
        save_mask(tmp_path / name, mask)


def test_a_folder_that_is_not_there(tmp_path, mask):
    for suffix in (".npy", ".mat", ".cfl", ".png"):
        with pytest.raises(MaskError, match="cannot be written"):
            save_mask(tmp_path / "nowhere" / f"mask{suffix}", mask)


@pytest.mark.parametrize("suffix", [".npy", ".mat", ".png"])
@pytest.mark.parametrize("content", [b"", b"no mask at all, but some text" * 20, bytes(2000)])
def test_a_file_of_something_else(tmp_path, suffix, content):
    (tmp_path / f"mask{suffix}").write_bytes(content)
    with pytest.raises(MaskError, match=f"mask{suffix}: "):
        load_mask(tmp_path / f"mask{suffix}")


@pytest.mark.parametrize("suffix", [".npy", ".mat", ".cfl", ".png"])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_truncated_file(folder, suffix, data):
    file = folder / f"cut{suffix}"
    save_mask(file, make_mask("random2d", (30, 40), 0.3))
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 40))])
    with pytest.raises(MaskError, match=f"cut{suffix}: "):
        load_mask(file)


def test_a_damaged_matlab_73_file(tmp_path, mask):
    with h5py.File(tmp_path / "mask.mat", "w") as matlab:
        matlab["mask_matrix"] = mask
    content = (tmp_path / "mask.mat").read_bytes()
    (tmp_path / "mask.mat").write_bytes(content[: len(content) // 2])
    with pytest.raises(MaskError, match=r"mask\.mat: "):
        load_mask(tmp_path / "mask.mat")


def test_a_mat_file_without_the_variable(tmp_path, mask):
    scipy.io.savemat(tmp_path / "old.mat", {"pattern": mask})
    with h5py.File(tmp_path / "new.mat", "w") as matlab:
        matlab["pattern"] = mask
    for name in ("old.mat", "new.mat"):
        with pytest.raises(MaskError, match=r"no variable 'mask_matrix' \(found: pattern\)"):
            load_mask(tmp_path / name)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("nothing here", "not a BART header"),
        ("# Dimensions\n4 x 1\n", "not a BART header"),
        ("# Dimensions\n", "not a BART header"),
        ("# Dimensions\n4 0 1\n", "cannot have the dimensions"),
        ("# Dimensions\n99999999 99999999\n", "cannot have the dimensions"),
        ("# Dimensions\n4 4 1 8\n", "dimensions 0 to 2 only"),
        ("# Dimensions\n4 5\n", "its header asks for 160 bytes, the file has 128"),
    ],
)
def test_a_wrong_bart_header(tmp_path, header, message):
    np.ones((4, 4), "<c8").tofile(tmp_path / "mask.cfl")
    (tmp_path / "mask.hdr").write_text(header)
    with pytest.raises(MaskError, match=message):
        load_mask(tmp_path / "mask.cfl")


def test_a_cfl_without_its_header(tmp_path):
    np.ones((4, 4), "<c8").tofile(tmp_path / "mask.cfl")
    with pytest.raises(MaskError, match=r"mask\.hdr: no such file"):
        load_mask(tmp_path / "mask.cfl")


def test_images_that_are_no_mask(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "colour.png")
    with pytest.raises(MaskError, match="a grey image, this one is RGB"):
        load_mask(tmp_path / "colour.png")
    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png")
    with pytest.raises(MaskError, match="128 stands at"):
        load_mask(tmp_path / "grey.png")
    Image.new("L", (8, 8), 0).save(tmp_path / "black.png")
    with pytest.raises(MaskError, match="no sample at all"):
        load_mask(tmp_path / "black.png")


def test_a_failed_write_leaves_the_old_file(tmp_path, mask, monkeypatch):
    save_mask(tmp_path / "mask.npy", mask)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(MaskError, match="No space left"):
        save_mask(tmp_path / "mask.npy", ~mask)
    assert mask_hash(load_mask(tmp_path / "mask.npy")) == mask_hash(mask)
    assert len(list(tmp_path.iterdir())) == 1
