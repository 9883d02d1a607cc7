"""The Triton kernels: by Triton's interpreter, through its compiler, and on a GPU where there is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mri_qpan import engines, models
from mri_qpan.encoding import Encoding
from mri_qpan.engines import gpu
from mri_qpan.networks import named_config

triton = pytest.importorskip("triton", reason="needs Triton, which has no wheel for every machine")
CUDA = torch.cuda.is_available()


def test_the_kernels_equal_the_plain_layers_by_tritons_interpreter():
    """In a process of its own: Triton looks for the interpreter when it is imported."""
    script = Path(__file__).parents[1] / "helpers" / "interpreted_kernels.py"
    done = subprocess.run(
        [sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = dict(line.split() for line in done.stdout.splitlines())
    assert len(told) == 3 * 4 + 3  # layers and networks
    assert all(float(error) < 1e-4 for error in told.values()), told


@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_without_a_gpu_and_spill_nothing(capability, tmp_path):
    import triton.backends.nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mri_qpan.engines import gpu_kernels as kernels

    f32, bf16, i32 = "*fp32", "*bf16", "*i32"
    tile = {k: v for k, v in gpu.LAUNCH.items() if k.isupper()}
    options = {k: v for k, v in gpu.LAUNCH.items() if not k.isupper()}
    size = {"height": "i32", "width": "i32"}
    sources = [
        (
            kernels.expand,
            {"image": f32, "carried": bf16, "gate": f32, "factors": f32, "weight": f32, "out": bf16},
            {"CHANNELS": 2, "CARRY": True},
        ),
        (
            kernels.collect,
            {"features": bf16, "weight": f32, "image": f32, "out": f32},
            {"CHANNELS": 2},
        ),
    ]
    for bits, after in ((1, 0), (3, 1), (4, 2)):
        taken = {"features": bf16, "bits": i32, "scale": f32, "shape": f32, "out": bf16}
        constants = {"BITS": bits, "AFTER": after, "L1": 1, "MCP": 1, "SCAD": 1}
        sources.append((kernels.convolve, taken, constants))
    reader = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    for function, taken, constants in sources:
        constants = constants | tile
        source = ASTSource(
            fn=function,
            signature={**taken, **size, **dict.fromkeys(constants, "constexpr")},
            constexprs=constants,
        )
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert "mma" in made.asm["ptx"] or function is not kernels.convolve  # tensor cores do the products
        if reader.exists():
            (tmp_path / "kernel.cubin").write_bytes(made.asm["cubin"])
            told = subprocess.run(
                [reader, "-res-usage", tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True
            )
            registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", told.stdout + told.stderr).groups()
            assert int(stack) == 0
            assert int(registers) <= 160


@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_no_gpu_is_said():
    with pytest.raises(ValueError, match=r"compute capability 8\.0"):
        engines.choose("fused", named_config("pan+", bits=3), "cuda")


@pytest.mark.skipif(not CUDA, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", ["qpan+-3bit", "qpan+-2bit", "qpan+-1bit"])
def test_on_a_gpu_models_equal_float32(name):
    model = models.load_model(name, device="cuda", engine="fused")
    plain = models.load_model(name, device="cuda", engine="float32")
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 200), indexing="ij")
    image = ((y.square() + x.square()) < 0.6).to(torch.complex64)[None].cuda()
    encoding = Encoding((torch.rand(1, 256, 200) < 0.4).cuda())
    adjoint = encoding.adjoint(encoding.forward(image))
    with torch.inference_mode():
        found, expected = model(adjoint, encoding.normal), plain(adjoint, encoding.normal)
    assert model.engine == "fused"
    assert float((found - expected).norm() / expected.norm()) < 0.01
