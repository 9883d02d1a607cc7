import sys
from pathlib import Path

import pytest

from mri_qpan import models
from mri_qpan.cli.main import run
from mri_qpan.models import store
from mri_qpan.networks import ProximalNetwork, named_config
from mri_qpan.recon import demo


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `mri-qpan demo …` on a small phantom as the console script does: exit code, stdout, stderr."""
    small = demo.Protocol(matrix=(48, 48), coils=2, slices=1, ratio=0.5, calib=12)
    monkeypatch.setattr(demo, "Protocol", lambda: small)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mri-qpan", "demo", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "tiny.safetensors"
    network = ProximalNetwork(named_config("pan+", layers=1, filters=4))
    store.save(path, network, "tiny", {field: kind() for field, kind in store.CARD_FIELDS.items()})
    return path


def test_compares_methods_and_says_where_the_files_are(command, model, tmp_path):
    folder = tmp_path / "new" / "folder"
    code, out, _ = command("-o", folder, "-m", "zero-filled", "-m", "wavelet", "-m", model)
    assert code == 0
    for word in ("zero-filled", "wavelet", "tiny", "PSNR", "SSIM"):
        assert word in out
    for name in ("phantom.h5", "demo.png", "demo.json"):
        assert (folder / name).stat().st_size > 0
        assert name in out


def test_without_a_model_it_says_so_and_writes_nothing(command, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "list_models", list)
    code, out, err = command("-o", tmp_path / "out")
    assert code == 3
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "no model" in err
    assert not (tmp_path / "out").exists()


def test_unknown_method(command, tmp_path):
    code, _, err = command("-o", tmp_path / "out", "-m", "wavelets")
    assert code == 2
    assert "did you mean wavelet?" in err
