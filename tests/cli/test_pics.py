"""`mri-qpan pics` in scripts written for BART: its files made, read and judged by Debian's `bart`."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from typer.testing import CliRunner

from mri_qpan.bart import read_cfl, write_cfl
from mri_qpan.cli.main import app
from mri_qpan.errors import InputError, ModelError, OptionError
from mri_qpan.recon.pics import Arrays, _norm, full, scaling
from mri_qpan.sampling_masks import make_mask

SIZE = 96
needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")


def bart(folder, *words):
    done = subprocess.run(
        ["bart", *map(str, words)], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0 or words[0] == "nrmse", done.stderr
    return done.stdout


def nrmse(folder, *words):
    return float(bart(folder, "nrmse", *words).split()[-1])


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Full, undersampled and radial k-space of BART's phantom, its maps and the image that they see."""
    folder = tmp_path_factory.mktemp("bart")
    bart(folder, "phantom", f"-x{SIZE}", "-s6", "-k", "full")
    bart(folder, "noise", "-s1", "-n", 100, "full", "noisy")
    write_cfl(folder / "pattern", make_mask("lines", (SIZE, SIZE), 0.25, seed=1))
    bart(folder, "fmac", "noisy", "pattern", "kspace")
    bart(folder, "ecalib", "-m1", "kspace", "maps")
    bart(folder, "ecalib", "-m2", "kspace", "maps2")
    bart(folder, "fft", "-i", "-u", 3, "full", "coils")
    bart(folder, "fmac", "-C", "-s", 8, "coils", "maps", "reference")
    bart(folder, "traj", "-r", f"-x{SIZE}", "-y", 48, "spokes")
    bart(folder, "phantom", "-t", "spokes", "-s6", "-k", "radial")
    return folder


def factor(folder, ours, theirs):
    """Return the least-squares factor from one image to another."""
    x, y = (read_cfl(folder / name).ravel() for name in (ours, theirs))
    return np.vdot(x, y) / np.vdot(x, x)


def pics(folder, *words):
    last = [str(folder / word) if word in FILES or word == "out" else str(word) for word in words]
    return CliRunner().invoke(app, ["pics", *last], catch_exceptions=False)


FILES = ("kspace", "noisy", "maps", "maps2", "pattern", "spokes", "radial", "twice", "short")


@needs_bart
def test_one_word_replaced_in_a_script_gives_a_better_image(scan):
    bart(scan, "pics", "-S", "-i", 50, "-R", "W:3:0:0.002", "kspace", "maps", "theirs")
    result = pics(scan, "-S", "-i", 50, "-R", "W:3:0:0.002", "-d4", "kspace", "maps", "out")
    assert result.exit_code == 0
    assert "has no use for -i, -R W:3:0:0.002" in result.stderr
    assert nrmse(scan, "reference", "out") < nrmse(scan, "reference", "theirs")
    header = (scan / "out.hdr").read_text()
    assert "# Command\nmri-qpan pics" in header
    assert f"<{scan / 'kspace'}" in header
    assert bart(scan, "show", "-m", "out").split("AoD:")[1].split()[:4] == [str(SIZE), str(SIZE), "1", "1"]


@needs_bart
def test_the_scale_without_s_is_barts(scan):
    bart(scan, "pics", "-i", 50, "-R", "W:3:0:0.002", "kspace", "maps", "theirs")
    assert pics(scan, "kspace", "maps", "out").exit_code == 0
    assert abs(factor(scan, "out", "theirs")) == pytest.approx(1, abs=0.05)
    assert pics(scan, "-w", 10, "kspace", "maps", "out").exit_code == 0
    tenth = read_cfl(scan / "out")
    assert pics(scan, "-S", "kspace", "maps", "out").exit_code == 0
    assert np.allclose(read_cfl(scan / "out"), 10 * tenth, rtol=1e-4, atol=1e-3 * np.abs(tenth).max())


def _barts_scale(folder, *words):
    """Return what `bart pics` says that it divides by."""
    said = subprocess.run(
        ["bart", "pics", "-d5", "-l2", "-i1", *words, "theirs"],
        cwd=folder, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    lines = re.findall(r"Inverse scaling of the data: ([\d.]+)", said.stdout + said.stderr)
    return float(lines[0]) if lines else 1.0  # 1 where there is nothing to go by


def _scale(folder, kspace, maps, **others):
    arrays = {name: full(read_cfl(folder / file)) for name, file in others.items()}
    return scaling(Arrays(full(read_cfl(folder / kspace)), full(read_cfl(folder / maps)), **arrays))


@needs_bart
@pytest.mark.parametrize("matrix", [(96, 96), (71, 64), (64, 45), (48, 33)])
@pytest.mark.parametrize("acs", [0, 1, 4, 5, 16, 40])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_scale_of_any_centre_is_barts(scan, matrix, acs, axis):
    rng = np.random.default_rng(acs)
    whole = read_cfl(scan / "full").reshape(6, SIZE, SIZE)
    kspace = whole[:, : matrix[0], : matrix[1]]
    kspace = np.roll(kspace, (matrix[0] // 2 - SIZE // 2, matrix[1] // 2 - SIZE // 2), (1, 2))
    lines = rng.random(matrix[axis]) < 0.3
    middle = matrix[axis] // 2
    lines[middle - acs // 2 : middle - acs // 2 + acs] = True
    mask = np.broadcast_to(lines if axis else lines[:, None], matrix)
    write_cfl(scan / "twice", (kspace * mask)[:, None])
    write_cfl(scan / "short", np.ones((6, 1, *matrix)) / np.sqrt(6))
    assert _scale(scan, "twice", "short") == pytest.approx(_barts_scale(scan, "twice", "short"), rel=1e-3)


@needs_bart
def test_the_scale_along_trajectories_is_barts_of_all_frames(scan):
    bart(scan, "scale", 3, "radial", "louder")
    bart(scan, "join", 10, "radial", "louder", "twice")
    bart(scan, "ones", 3, 1, SIZE, 48, "ones")
    bart(scan, "scale", 0.5, "ones", "half")
    for name, pattern in (("radial", "ones"), ("radial", "half"), ("radial", None), ("twice", None)):
        words = [] if pattern is None else ["-p", pattern]
        theirs = _barts_scale(scan, *words, "-t", "spokes", name, "maps")
        ours = _scale(scan, name, "maps", trajectory="spokes", **({"pattern": pattern} if pattern else {}))
        assert ours == pytest.approx(theirs, rel=0.01)


@needs_bart
def test_the_pattern_does_not_move_the_scale(scan):
    theirs = _barts_scale(scan, "-p", "pattern", "noisy", "maps")
    assert _scale(scan, "noisy", "maps", pattern="pattern") == pytest.approx(theirs, rel=1e-3)


@needs_bart
def test_maps_of_any_scale_in_every_frame(scan):
    bart(scan, "join", 10, "kspace", "kspace", "twice")
    bart(scan, "scale", 100, "maps", "louder")
    bart(scan, "join", 10, "maps", "louder", "short")
    assert pics(scan, "-S", "twice", "short", "out").exit_code == 0
    first, second = read_cfl(scan / "out").reshape(2, -1)
    assert np.linalg.norm(100 * second - first) < 0.02 * np.linalg.norm(first)


@needs_bart
def test_a_blank_frame_along_a_trajectory_is_zero(scan):
    bart(scan, "scale", 0, "radial", "blank")
    bart(scan, "join", 10, "radial", "blank", "twice")
    assert pics(scan, "-S", "-t", "spokes", "twice", "maps", "out").exit_code == 0
    first, second = read_cfl(scan / "out").reshape(2, -1)
    assert first.any()
    assert not second.any()


@needs_bart
def test_a_pattern_of_zeros_and_ones_masks(scan):
    pics(scan, "-S", "kspace", "maps", "out")
    alone = read_cfl(scan / "out")
    assert pics(scan, "-S", "-p", "pattern", "noisy", "maps", "out").exit_code == 0
    assert np.allclose(read_cfl(scan / "out"), alone, atol=1e-4 * np.abs(alone).max())


def test_no_samples_give_no_image_and_a_word(tmp_path):
    write_cfl(tmp_path / "kspace", np.ones((2, 1, 16, 12), np.complex64))
    write_cfl(tmp_path / "maps", np.ones((2, 1, 16, 12), np.complex64) / 2)
    write_cfl(tmp_path / "pattern", np.zeros((16, 12), np.complex64))
    result = pics(tmp_path, "-p", "pattern", "kspace", "maps", "out")
    assert result.exit_code == 0
    assert "the image is zero" in result.stderr
    assert not read_cfl(tmp_path / "out").any()


@needs_bart
def test_looped_dimensions_are_worked_one_by_one(scan):
    bart(scan, "join", 10, "kspace", "noisy", "twice")
    assert pics(scan, "-S", "twice", "maps", "out").exit_code == 0
    both = read_cfl(scan / "out")
    assert both.shape == (2, 1, 1, 1, 1, 1, 1, 1, 1, SIZE, SIZE)
    for name, found in zip(("kspace", "noisy"), both.reshape(2, SIZE, SIZE), strict=True):
        pics(scan, "-S", name, "maps", "out")
        assert np.allclose(read_cfl(scan / "out").reshape(SIZE, SIZE), found, atol=1e-4 * np.abs(found).max())


@needs_bart
def test_two_sets_of_maps_give_two_images(scan):
    assert pics(scan, "-S", "kspace", "maps2", "out").exit_code == 0
    images = read_cfl(scan / "out")
    assert images.shape == (2, 1, 1, SIZE, SIZE)
    combined = np.linalg.norm(images, axis=0).reshape(SIZE, SIZE)
    single = np.abs(read_cfl(scan / "reference")).reshape(SIZE, SIZE)
    assert np.linalg.norm(combined - single) < 0.25 * np.linalg.norm(single)


@needs_bart
def test_radial_samples(scan):
    assert pics(scan, "-S", "-t", "spokes", "radial", "maps", "out").exit_code == 0
    bart(scan, "pics", "-S", "-i", 100, "-t", "spokes", "-l2", "-r", 0.001, "radial", "maps", "theirs")
    assert nrmse(scan, "theirs", "out") < 0.2
    assert factor(scan, "out", "theirs") == pytest.approx(1, abs=0.02)
    bart(scan, "pics", "-i", 100, "-t", "spokes", "-l2", "-r", 0.001, "radial", "maps", "theirs")
    assert pics(scan, "-t", "spokes", "radial", "maps", "out").exit_code == 0
    assert abs(factor(scan, "out", "theirs")) == pytest.approx(1, abs=0.1)


@needs_bart
def test_maps_of_any_scale_give_the_image_that_they_ask_for(scan):
    pics(scan, "-S", "kspace", "maps", "out")
    image = read_cfl(scan / "out")
    write_cfl(scan / "short", 4 * read_cfl(scan / "maps"))
    assert pics(scan, "-S", "kspace", "short", "out").exit_code == 0
    assert np.allclose(4 * read_cfl(scan / "out"), image, atol=1e-3 * np.abs(image).max())


@needs_bart
def test_two_sets_keep_the_norm_of_one(scan):
    """Sets of maps that are orthonormal in every pixel need no scale."""
    maps = full(read_cfl(scan / "maps2"))
    assert _norm(maps) == pytest.approx(1, abs=1e-3)


@needs_bart
def test_spokes_of_zeros_were_not_measured(scan):
    radial, spokes = read_cfl(scan / "radial"), read_cfl(scan / "spokes")
    write_cfl(scan / "short", radial * (np.arange(radial.shape[-3]) % 2 == 0)[:, None, None])
    assert pics(scan, "-S", "-t", "spokes", "short", "maps", "out").exit_code == 0
    half = read_cfl(scan / "out")
    write_cfl(scan / "twice", radial[..., ::2, :, :])
    write_cfl(scan / "short", spokes[::2])
    assert pics(scan, "-S", "-t", "short", "twice", "maps", "out").exit_code == 0
    # The norm of the operator is found by a power iteration from a random start.
    assert np.linalg.norm(read_cfl(scan / "out") - half) < 0.03 * np.linalg.norm(half)


@needs_bart
def test_a_plane_without_x_is_worked_as_a_plane(scan):
    """The inverse DFT along the readout, and one x of it, leave [1, y, z, coils]."""
    pics(scan, "-S", "kspace", "maps", "out")
    image = read_cfl(scan / "out")
    for name, new in (("kspace", "twice"), ("maps", "short")):
        array = read_cfl(scan / name)
        write_cfl(scan / new, array.reshape(array.shape[0], SIZE, SIZE, 1))
    assert pics(scan, "-S", "twice", "short", "out").exit_code == 0
    assert np.allclose(read_cfl(scan / "out").ravel(), image.ravel(), atol=1e-4 * np.abs(image).max())


@needs_bart
def test_a_pipeline_of_bart(scan, monkeypatch):
    """`bart fmac … - | mri-qpan pics - … - | bart copy - …`; Debian's BART 0.8 needs a -- before any -."""
    monkeypatch.chdir(scan)

    def piped(*words, given=None):
        done = subprocess.run(["bart", *words], input=given, capture_output=True, check=True, timeout=120)
        return done.stdout

    sent = piped("fmac", "--", "noisy", "pattern", "-")
    result = CliRunner().invoke(app, ["pics", "-S", "-", "maps", "-"], input=sent, catch_exceptions=False)
    assert result.exit_code == 0
    assert b"# Command\nmri-qpan pics" in result.stdout_bytes
    piped("copy", "--", "-", "piped", given=result.stdout_bytes)
    assert not list(scan.glob("bart-*"))
    pics(scan, "-S", "kspace", "maps", "out")
    assert np.array_equal(read_cfl(scan / "piped"), read_cfl(scan / "out"))
    assert "<-" in (scan / "piped.hdr").read_text()


@needs_bart
def test_weights_count_as_in_bart(scan):
    """BART weights the samples and the operator alike: weights of one value leave the image as it is."""
    write_cfl(scan / "half", 0.5 * read_cfl(scan / "pattern"))
    images = []
    for name in ("pattern", "half"):
        words = ["-S", "-i", 30, "-l2", "-r", 0.0001, "-p", name, "noisy", "maps", "theirs"]
        bart(scan, "pics", *words)
        assert pics(scan, "-S", "-p", str(scan / name), "noisy", "maps", "out").exit_code == 0
        images.append([read_cfl(scan / image).ravel() for image in ("theirs", "out")])
    for whole, weighted in zip(*images, strict=True):
        assert np.linalg.norm(weighted - whole) < 0.03 * np.linalg.norm(whole)


@needs_bart
def test_a_density_compensation_may_be_the_pattern_as_in_bart(scan):
    """Its square weighs the samples: BART's many iterations stand that, a few layers would not."""
    spokes = read_cfl(scan / "spokes").real.reshape(48, SIZE, 3)
    ramp = np.maximum(np.linalg.norm(spokes, axis=-1), 0.25) / SIZE
    write_cfl(scan / "ramp", ramp[None, None, :, :, None].astype(np.complex64))
    options = ["-S", "-i", 30, "-l2", "-r", 0.001, "-p", "ramp", "-t", "spokes"]
    bart(scan, "pics", *options, "radial", "maps", "theirs")
    arguments = ["-p", str(scan / "ramp"), "-t", str(scan / "spokes"), "radial", "maps", "out"]
    assert pics(scan, "-S", *arguments).exit_code == 0
    images = {name: read_cfl(scan / name).ravel() for name in ("theirs", "out", "reference")}
    errors = {}
    for name in ("theirs", "out"):
        scale = np.vdot(images[name], images["reference"]) / np.vdot(images[name], images[name])
        errors[name] = np.linalg.norm(scale * images[name] - images["reference"])
    assert errors["out"] < errors["theirs"]


@needs_bart
@pytest.mark.parametrize("factor", [1e-24, 1e20])
def test_patterns_and_maps_of_any_scale(scan, factor):
    assert pics(scan, "-S", "-p", "pattern", "noisy", "maps", "out").exit_code == 0
    expected = read_cfl(scan / "out")
    write_cfl(scan / "scaled", factor * read_cfl(scan / "pattern"))
    assert pics(scan, "-S", "-p", str(scan / "scaled"), "noisy", "maps", "out").exit_code == 0
    assert np.array_equal(read_cfl(scan / "out"), expected)
    write_cfl(scan / "scaled", factor * read_cfl(scan / "maps"))
    assert pics(scan, "-S", "-p", "pattern", "noisy", str(scan / "scaled"), "out").exit_code == 0
    error = np.linalg.norm(factor * read_cfl(scan / "out") - expected)
    assert error < 0.03 * np.linalg.norm(expected)  # the engine's rounding to 8 bits


@needs_bart
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_a_trajectory_that_is_not_finite(scan):
    spokes = read_cfl(scan / "spokes")
    spokes.flat[5] = np.nan
    write_cfl(scan / "broken", spokes)
    with pytest.raises(InputError, match="trajectory is not finite"):
        pics(scan, "-t", str(scan / "broken"), "radial", "maps", "out")
    radial = read_cfl(scan / "radial")
    write_cfl(scan / "loud", radial * (1e38 / np.abs(radial).max()))
    with pytest.raises(InputError, match="not finite"):
        pics(scan, "-t", "spokes", str(scan / "loud"), "maps", "out")


@needs_bart
def test_barts_own_q_is_no_model(scan):
    result = pics(scan, "-S", "-R", "Q:0.01", "kspace", "maps", "out")
    assert result.exit_code == 0
    assert "has no use for -R Q:0.01" in result.stderr


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="-g: no GPU found by this PyTorch, leave it out"):
        pics(tmp_path, "-g", "kspace", "maps", "out")


def test_a_pipe_that_is_none_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, message in (
        (b"", "not a BART header"),
        (b"name: fmac, usage_str: <input1> <output>\n", "a pipe is `bart COMMAND -- ... -`"),
        (b"# Dimensions\n2 2 1 1\n", "names no file"),
        (b"# Dimensions\n2 2 1 1\n# Data\nbart-gone\n", "0 bytes"),
    ):
        with pytest.raises(InputError, match=message):
            CliRunner().invoke(app, ["pics", "-", "maps", "out"], input=given, catch_exceptions=False)
    with pytest.raises(InputError, match="only one"):
        pics(tmp_path, "-", "-", "o")


def refused(folder, words, message):
    with pytest.raises(InputError, match=message):
        pics(folder, *words)


def test_what_does_not_fit_is_said(tmp_path):
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal((4, 1, 16, 12)) + 0j).astype(np.complex64)
    write_cfl(tmp_path / "kspace", noise)
    write_cfl(tmp_path / "maps", noise)
    refused(tmp_path, ["kspace", "missing", "out"], "missing.hdr")
    write_cfl(tmp_path / "short", noise[:3])
    refused(tmp_path, ["kspace", "short", "out"], "4 coils, the sensitivities 3")
    write_cfl(tmp_path / "short", noise[:, :, :8])
    refused(tmp_path, ["kspace", "short", "out"], "12 x 16 x 1")
    write_cfl(tmp_path / "short", 0 * noise)
    refused(tmp_path, ["kspace", "short", "out"], "zero")
    write_cfl(tmp_path / "pattern", np.ones((5, 12)))
    refused(tmp_path, ["-p", "pattern", "kspace", "maps", "out"], "pattern of 12 x 5 x 1")
    write_cfl(tmp_path / "spokes", np.ones((5, 7, 3)))
    refused(tmp_path, ["-t", "spokes", "kspace", "maps", "out"], "trajectory of 3 x 7 x 5")
    write_cfl(tmp_path / "twice", np.stack([noise, noise])[:, None])
    write_cfl(tmp_path / "short", np.stack([noise] * 3)[:, None])
    refused(tmp_path, ["twice", "short", "out"], "dimension 5")
    write_cfl(tmp_path / "pattern", np.ones((4, 1, 16, 12)))
    refused(tmp_path, ["-p", "pattern", "kspace", "maps", "out"], "each coil")
    write_cfl(tmp_path / "pattern", np.full((1, 1, 16, 12), np.nan))
    refused(tmp_path, ["-p", "pattern", "kspace", "maps", "out"], "pattern is not finite")
    noise[0, 0, 0, 0] = np.nan
    write_cfl(tmp_path / "short", noise)
    refused(tmp_path, ["short", "maps", "out"], "NaN")
    assert not (tmp_path / "out.cfl").exists()


def test_an_output_without_a_name_or_a_scale_without_end(tmp_path):
    for words, message in (
        (["kspace", "maps", "."], "the name of a file"),
        (["kspace", "maps", tmp_path / ".."], "the name of a file"),
        (["-w", "inf", "kspace", "maps", "out"], "-w inf"),
    ):
        with pytest.raises(OptionError, match=message):
            pics(tmp_path, *words)
    assert not list(tmp_path.iterdir())


def test_a_trajectory_that_leaves_the_plane_of_the_maps(tmp_path):
    rng = np.random.default_rng(0)
    write_cfl(tmp_path / "radial", rng.standard_normal((4, 5, 7, 1)).astype(np.complex64))
    write_cfl(tmp_path / "maps", np.ones((4, 1, 16, 12)))
    trajectory = rng.uniform(-5, 5, (5, 7, 3))
    write_cfl(tmp_path / "spokes", trajectory)
    refused(tmp_path, ["-S", "-t", "spokes", "radial", "maps", "out"], "leaves the plane")
    trajectory[..., 2] = 0
    write_cfl(tmp_path / "spokes", trajectory)
    assert pics(tmp_path, "-S", "-t", "spokes", "radial", "maps", "out").exit_code == 0


def test_flags_that_would_change_the_problem_are_refused(tmp_path):
    result = CliRunner().invoke(app, ["pics", "-B", "basis", "a", "b", "c"])
    assert result.exit_code == 2


def test_a_model_of_real_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="takes the real images of the published experiment"):
        pics(tmp_path, "-R", "Q:brain-q-pan+-3bit", "a", "b", "c")


@pytest.mark.parametrize("name", ["wavelet", "qpan"])
def test_the_network_must_be_one(tmp_path, name):
    """Classical solvers have weights for images of another scale."""
    with pytest.raises(ModelError, match="no model called"):
        pics(tmp_path, "-R", f"Q:{name}", "a", "b", "c")
