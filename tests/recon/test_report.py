"""The HTML page: whole in itself, true to the record, and alive in a browser."""

import base64
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from mri_qpan.methods import get_method
from mri_qpan.recon.job import Job, reconstruct_file
from mri_qpan.recon.kspace import Index, KSpace
from mri_qpan.recon.pipeline import reconstruct
from mri_qpan.recon.report import MOST, VIRIDIS, page, show
from mri_qpan.recon.study import Undersampling
from mri_qpan.recon.views import PLANES
from mri_qpan.recon.writers.ismrmrd_raw import write_raw

Maker = Callable[..., KSpace]
RECORD: dict[str, Any] = {
    "input": "/data/<b>scan</b>.h5",
    "method": "tv",
    "model_sha256": None,
    "device": "cpu",
    "engine": None,
    "version": "1",
    "command": "mri-qpan recon '<b>scan</b>.h5'",
    "created": "now",
    "mask_ratio": 0.25,
    "residual": 0.05,
    "warnings": ["too <noisy>"],
    "notes": ["no noise scan"],
}


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory, small_kspace: Maker) -> Path:
    """The page of a study of two slices."""
    folder = tmp_path_factory.mktemp("report")
    write_raw(folder / "scan.h5", [small_kspace(Index(slice=s)) for s in range(2)])
    job = Job(get_method("cg-sense"), torch.device("cpu"), Undersampling.parse("lines:0.4"), report=True)
    record = reconstruct_file(folder / "scan.h5", folder, job)
    assert record["outputs"][-1] == "scan_cg-sense.html"
    return folder / "scan_cg-sense.html"


def pictures(text: str) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    for data, name in re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', text):
        found.setdefault(name, []).append(np.asarray(Picture.open(io.BytesIO(base64.b64decode(data)))))
    return found


def test_it_holds_every_picture_and_asks_for_nothing_else(html: Path) -> None:
    text = html.read_text(encoding="utf-8")
    found = pictures(text)
    names = {"zero-filled", "reconstructed", "difference", "sampling mask", "residual"}
    assert {name for name, drawn in found.items() if len(drawn) == 2} == names
    assert len(found["coil maps"]) == 1
    assert not re.search(r"(src|href)=.(?!data:)", text)
    assert "http" not in text.replace("http-equiv", "")
    assert "Against the fully sampled image" in text
    assert "slice 2" in text
    assert "<!--" not in text
    np.testing.assert_array_equal(np.unique(found["sampling mask"][0]), [0, 255])
    assert (found["sampling mask"][0] > 0).mean() == pytest.approx(0.4, abs=0.05)


def test_words_of_files_are_no_markup() -> None:
    text = page(RECORD, [])
    assert "<b>scan" not in text
    assert "too &lt;noisy&gt;" in text


def test_long_series_are_thinned_and_it_says_so(small_kspace: Maker) -> None:
    result = reconstruct(small_kspace(coils=1), get_method("zero-filled"), views=True)
    assert result.views is not None
    (one,) = show(result, result.views, maps=False)
    many = [[replace(one, heading=f"slice {n}")] for n in range(3 * MOST)]
    text = page(RECORD, many)
    assert text.count("<section><h2>slice") == MOST
    assert f"{3 * MOST} images, {MOST} of them shown" in text
    assert ">slice 0<" in text
    assert f">slice {3 * MOST - 1}<" in text


@pytest.mark.parametrize("depth", [4, 30])
def test_slabs_show_planes_their_middle_first(small_kspace: Maker, depth: int) -> None:
    kspace = small_kspace(coils=1)
    factors = np.arange(depth, dtype=np.float32)
    data = kspace.data * factors[:, None, None]
    slab = replace(kspace, data=data, mask=np.ones((depth, 48, 40), bool), recon_shape=(depth, 48, 40))
    result = reconstruct(slab, get_method("zero-filled"), views=True)
    assert result.views is not None
    assert result.views.zero_filled.shape == (min(depth, PLANES), 48, 40)
    shown = show(result, result.views, maps=True)
    assert shown[0].heading == f"slice 1, plane {depth // 2 + 1} of {depth}"
    assert "mask" in shown[0].pictures
    assert "mask" not in shown[1].pictures
    numbers = [int(re.findall(r"plane (\d+)", part.heading)[0]) for part in shown[1:]]
    assert numbers == sorted(numbers)
    assert len({*numbers, depth // 2 + 1}) == min(depth, PLANES)
    assert page(RECORD, [shown] * 40).count("<section><h2>slice") == MOST // len(shown) * len(shown)


def test_maps_of_noise_have_colours_a_scale_and_a_unit(small_kspace: Maker) -> None:
    result = reconstruct(small_kspace(), get_method("cg-sense"), views=True, replicas=4)
    assert result.views is not None
    (part,) = show(result, result.views, maps=False)
    assert [entry.caption.partition(":")[0] for entry in part.noise] == ["uncertainty", "SNR", "g-factor"]
    for entry, (quantity, image) in zip(part.noise, result.maps.items(), strict=True):
        values = image.data[0].real
        assert (values[values > 0] <= entry.top).mean() >= 0.99
        assert np.quantile(values[values > 0], 0.99) > entry.top / 2.01
        assert ("no unit" in entry.caption) == quantity.pure
        drawn = np.asarray(Picture.open(io.BytesIO(entry.picture)))
        assert drawn.shape == (48, 40, 3)
        # The place in the colours, by the nearest of them, is the value over the top of the scale.
        table = np.stack([np.interp(np.arange(256), np.linspace(0, 255, 9), c) for c in np.array(VIRIDIS).T])
        place = np.square(drawn[..., None] - table).sum(2).argmin(-1) / 255
        inside = values > 0
        np.testing.assert_allclose(place[inside], np.minimum(values / entry.top, 1)[inside], atol=0.01)
        assert (drawn[~inside] == 0).all()
    text = page(RECORD, [[part]])
    assert text.count("<div class='bar'>") == 3
    assert "linear-gradient(90deg, rgb(68, 1, 84)" in text
    assert f"<span>{part.noise[2].top:.3g}</span>" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_in_a_browser(html: Path, tmp_path: Path) -> None:
    """The slider moves; every picture is drawn with a size."""
    script = (
        "<script>window.onload = () => { const s = document.querySelector('.slider input'); s.value = 20;"
        "s.dispatchEvent(new Event('input'));"
        "document.title = [...document.images].every(i => i.naturalWidth > 9 && i.clientHeight > 9) }"
        "</script>"
    )
    probe = tmp_path / "probe.html"
    probe.write_text(
        html.read_text(encoding="utf-8").replace("</body>", script + "</body>"), encoding="utf-8"
    )
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    result = subprocess.run(
        [*command, "--virtual-time-budget=3000", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "<title>true</title>" in result.stdout
    assert "inset(0px 80% 0px 0px)" in result.stdout
