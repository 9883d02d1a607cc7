import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from mri_qpan.methods import Method, get_method
from mri_qpan.networks import ProximalNetwork, named_config
from mri_qpan.recon import demo
from mri_qpan.recon.readers import open_kspace

SMALL = demo.Protocol(matrix=(64, 72), coils=4, slices=2, ratio=0.375, calib=16)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> demo.Demo:
    network = ProximalNetwork(named_config("pan+", layers=1, filters=4)).eval()
    methods = [get_method("zero-filled"), demo.WAVELET, Method("untrained", network)]
    return demo.run(tmp_path_factory.mktemp("demo"), methods, protocol=SMALL)


def test_full_sampling_gives_the_reference(tmp_path: Path) -> None:
    """Reader, whitening, crop, maps and combination together return what the phantom's k-space is of."""
    full = demo.Protocol(matrix=(64, 72), coils=4, slices=1, ratio=1.0, calib=24, sigma=1e-4)
    (shown,) = demo.run(tmp_path, [get_method("zero-filled")], protocol=full).slices
    assert shown.mask.all()
    assert shown.outcomes["zero-filled"].psnr > 40


def test_wavelet_beats_zero_filling(made: demo.Demo) -> None:
    assert made.mean("wavelet")[0] > made.mean("zero-filled")[0] + 1
    assert [shown.reference.shape for shown in made.slices] == [SMALL.matrix] * 2
    assert all(shown.mask.mean() == pytest.approx(SMALL.ratio, abs=0.005) for shown in made.slices)


def test_raw_file_is_a_scan(made: demo.Demo) -> None:
    kspaces = list(open_kspace(made.files[0]))
    assert len(kspaces) == SMALL.slices
    for number, kspace in enumerate(kspaces):
        assert kspace.data.shape == (4, 1, 64, 144)
        assert kspace.recon_shape == (1, *SMALL.matrix)
        assert kspace.noise_covariance is not None
        assert kspace.index.slice == number
        level = np.sqrt(np.trace(kspace.noise_covariance).real / 4)
        assert level == pytest.approx(SMALL.sigma, rel=0.15)
    assert kspaces[1].geometry.position[2] > kspaces[0].geometry.position[2]


def test_picture_and_figures(made: demo.Demo) -> None:
    assert [path.name for path in made.files] == ["phantom.h5", "demo.png", "demo.json"]
    assert {path.name for path in made.files[0].parent.iterdir()} == {path.name for path in made.files}
    with Picture.open(made.files[1]) as picture:
        assert np.asarray(picture).std() > 20
    record = json.loads(made.files[2].read_text())
    assert [entry["method"] for entry in record] == made.methods
    assert record[1]["psnr"] == pytest.approx(made.mean("wavelet")[0])
    assert len(record[0]["slices"]) == SMALL.slices
