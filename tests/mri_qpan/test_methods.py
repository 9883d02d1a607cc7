import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from mri_qpan import methods, models
from mri_qpan.encoding import Encoding, Normal
from mri_qpan.errors import InputError, ModelError, ReconError
from mri_qpan.methods import as_reconstructor, find_device, get_method, method_names
from mri_qpan.models import store
from mri_qpan.networks import NetworkConfig, ProximalNetwork
from mri_qpan.solvers import SOLVERS


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_reconstructs_by_name(name: str) -> None:
    encoding = Encoding(torch.ones(1, 32, 32, dtype=torch.bool))
    image = torch.zeros(1, 32, 32, dtype=torch.complex64)
    image[:, 8:24, 8:24] = 1
    method = get_method(name)
    assert (method.name, method.sha256) == (name, None)
    torch.testing.assert_close(method(image, encoding.normal), image, atol=0.2, rtol=0)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    card = {"data": [], "figures": {}, "licence": "any", "training": {}}
    store.save(path, ProximalNetwork(NetworkConfig(layers=1, filters=4)), "my net", card)
    return path


def test_a_model_file_by_path(model_file: Path) -> None:
    method = get_method(str(model_file))
    assert method.name == "my net"
    assert method.sha256 is not None
    assert len(method.sha256) == 64
    image = torch.ones(1, 16, 16, dtype=torch.complex64)
    assert method(image, lambda x: x).shape == image.shape


@pytest.mark.parametrize("name", models.list_models(channels=2))
def test_a_shipped_model_by_name(name: str) -> None:
    assert get_method(name).name == name


def test_unknown_names_get_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="did you mean wavelet"):
        get_method("Wavlet")
    monkeypatch.setattr(methods.models, "list_models", lambda channels=None: ["qpan+-3bit"])
    assert method_names()[0] == "qpan+-3bit"
    with pytest.raises(InputError, match=r"did you mean qpan\+-3bit"):
        get_method("qpan-3bit")
    with pytest.raises(InputError, match=r"choose from .*paisa"):
        get_method("xyz")


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.safetensors"):
        get_method(str(tmp_path / "nothing.safetensors"))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto").type == find_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="no GPU"):
        find_device("cuda")
    with pytest.raises(InputError, match="auto, cpu or cuda"):
        find_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto").type == find_device("cuda").type == "cuda"


MINE = """
def half(adjoint, normal):
    return 0.5 * adjoint

def broken(adjoint, normal):
    raise RuntimeError("no luck")

def numpy(adjoint, normal):
    return adjoint.numpy()

def small(adjoint, normal):
    return adjoint[..., 1:]

number = 3
"""


def descend(adjoint: torch.Tensor, normal: Normal) -> torch.Tensor:
    """Go a gradient step of 1/4 |A^H A x - A^H y|^2-like energies, the gradient by autograd."""
    with torch.enable_grad():
        x = adjoint.detach().clone().requires_grad_()
        energy = (x.conj() * (0.5 * normal(x) - adjoint)).sum().real
        (gradient,) = torch.autograd.grad(energy, x)
    return (x - 0.5 * gradient).detach()


class TestFunctionsOfOnesOwn:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(MINE)
        return path

    def test_a_function_of_a_file(self, file: Path) -> None:
        method = get_method(f"{file}:half")
        assert (method.name, method.sha256) == ("half", None)
        image = torch.ones(1, 4, 4, dtype=torch.complex64)
        assert torch.equal(method(image, lambda x: x), image / 2)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("broken", "broken failed: RuntimeError: no luck"),
            ("numpy", "returned ndarray"),
            ("small", r"returned \(1, 4, 3\), not an image tensor of \(1, 4, 4\)"),
        ],
    )
    def test_what_it_does_wrong_is_said(self, file: Path, name: str, words: str) -> None:
        with pytest.raises(ReconError, match=words):
            get_method(f"{file}:{name}")(torch.ones(1, 4, 4, dtype=torch.complex64), lambda x: x)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("mine.py:nothing", "no function called 'nothing'"),
            ("mine.py:number", "no function"),
            ("x.py:f", "no such"),
        ],
    )
    def test_files_without_it(self, file: Path, name: str, words: str) -> None:
        with pytest.raises(InputError, match=words):
            get_method(str(file.with_name(name)))

    def test_a_file_that_fails(self, file: Path) -> None:
        file.write_text("1 / 0")
        with pytest.raises(InputError, match="ZeroDivisionError"):
            get_method(f"{file}:half")

    def test_a_file_that_ends_the_program(self, file: Path) -> None:
        file.write_text("import sys\nsys.exit('no scanner here')")
        with pytest.raises(InputError, match="SystemExit: no scanner here"):
            get_method(f"{file}:half")

    def test_a_function_that_ends_the_program(self) -> None:
        method = as_reconstructor(lambda adjoint, normal: sys.exit(3), "quitter")
        with pytest.raises(ReconError, match="quitter failed: SystemExit: 3"):
            method(torch.ones(1, 4, 4, dtype=torch.complex64), lambda x: x)

    def test_modules_beside_the_file_and_its_dataclasses(self, file: Path) -> None:
        file.with_name("factor_of_the_lab.py").write_text("FACTOR = 0.25\n")
        file.write_text(
            "from __future__ import annotations\n"
            "from dataclasses import dataclass, field\n"
            "from factor_of_the_lab import FACTOR\n"
            "@dataclass\n"
            "class Settings:\n"
            "    factor: float = field(default=FACTOR)\n"
            "def quarter(adjoint, normal):\n"
            "    from factor_of_the_lab import FACTOR\n"
            "    return Settings().factor * adjoint\n"
        )
        image = torch.ones(1, 4, 4, dtype=torch.complex64)
        assert torch.equal(get_method(f"{file}:quarter")(image, lambda x: x), image / 4)

    def test_files_named_as_modules_are_do_not_stand_in_for_them(self, file: Path) -> None:
        ours = file.with_name("h5py.py")
        ours.write_text(MINE)
        before = sys.modules.get("h5py")
        assert get_method(f"{ours}:half").name == "half"
        assert sys.modules.get("h5py") is before
        asked = f"import sys; sys.path = {sys.path!r}; import h5py; print(h5py.__file__)"
        found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
        assert Path(found.stdout.strip()) != ours

    def test_it_travels_to_another_process(self) -> None:
        method = pickle.loads(pickle.dumps(as_reconstructor(descend)))
        assert method.name == "descend"

    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
    def test_it_may_take_gradients(self, mode: Callable[[], AbstractContextManager[None]]) -> None:
        with mode():
            maps = torch.randn(1, 3, 16, 12, dtype=torch.complex64)
            encoding = Encoding(torch.rand(1, 16, 12) < 0.5, maps / maps.abs().square().sum(1, True).sqrt())
            adjoint = encoding.normal(torch.randn(1, 16, 12, dtype=torch.complex64))
            found = as_reconstructor(descend)(adjoint, encoding.normal)
            expected = adjoint - 0.5 * (encoding.normal(adjoint) - adjoint)
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad

    def test_a_method_of_another_package(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        info = file.parent / "lab-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[mri_qpan.methods]\nlab-half = mine:half\n")
        monkeypatch.syspath_prepend(str(file.parent))
        assert "lab-half" in method_names()
        assert get_method("lab-half").name == "lab-half"
