"""Every engine against the plain proximal step, in every type it offers."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_qpan import models
from mri_qpan.encoding import Encoding
from mri_qpan.engines import inplace, kernels
from mri_qpan.networks import SYSTEMS, ProximalNetwork, named_config
from mri_qpan.penalties import PENALTIES, proximal_average


@settings(deadline=None, max_examples=50)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 4),
    lam=st.tuples(*[st.floats(0.01, 1)] * 3),
    gamma=st.floats(1.05, 5),
    a=st.floats(2.05, 5),
    which=st.sets(st.sampled_from(PENALTIES), min_size=1),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_average_in_place_is_the_average(shape, lam, gamma, a, which, channels_last, seed):
    penalties = tuple(name for name in PENALTIES if name in which)
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    expected = proximal_average(x, lam[: len(penalties)], gamma, a, penalties)
    inplace.proximal_average_(x, lam[: len(penalties)], gamma, a, penalties)
    assert torch.allclose(x, expected, atol=1e-12)


def test_pieces_join_without_a_seam(monkeypatch):
    x = torch.randn(2, 3, 7, 5)
    expected = proximal_average(x, (0.1, 0.2, 0.3), 2.0, 3.0)
    monkeypatch.setattr(inplace, "PIECE", 16)
    inplace.proximal_average_(x, (0.1, 0.2, 0.3), 2.0, 3.0, PENALTIES)
    assert torch.allclose(x, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("system", "more"),
    [
        *((s, {}) for s in SYSTEMS),
        ("pan+", {"carry": True, "consistency": 2}),
        ("pan+", {"shares": "learned"}),
    ],
)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("filters", [8, 32])  # 32: through the kernels
def test_inference_equals_the_plain_module(system, more, dtype, bound, filters):
    torch.manual_seed(0)
    config = named_config(system, layers=3, filters=filters, bits=2, **more)
    network = ProximalNetwork(config, dtype)
    for name, parameter in network.named_parameters():
        if "carry" in name or "shares" in name:
            torch.nn.init.normal_(parameter)
    exact = ProximalNetwork(config)
    exact.load_state_dict(network.state_dict())
    encoding = Encoding(torch.rand(2, 17, 12) < 0.5)
    adjoint = encoding.adjoint(torch.randn(2, 1, 17, 12, dtype=torch.complex64))
    plain = exact(adjoint, encoding.normal).detach()
    with torch.inference_mode():
        fast = network(adjoint, encoding.normal)
    assert float((fast - plain).norm() / plain.norm()) < bound


@pytest.mark.parametrize("given", [None, "elsewhere"])
def test_compiled_code_is_kept_where_a_later_process_finds_it(monkeypatch, tmp_path, given):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given or "")
    if given is None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(function) or function)
    model = models.load_model("qpan+-1bit", engine="compiled")
    assert model.engine == "compiled"
    assert model.dtype == inplace.fast_dtype("cpu")
    assert compiled
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == (given or str(tmp_path / "mri-qpan" / "inductor"))


def test_the_kernels_are_built_where_they_can_be():
    """Else the tests that hold them would all be skipped."""
    cpu = Path("/proc/cpuinfo")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler here")
    if not cpu.exists() or not {"avx2", "fma"} <= set(cpu.read_text().split()):
        pytest.skip("no processor with AVX2 here")
    assert kernels.width() >= 256
