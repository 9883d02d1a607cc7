"""A short soak of the MRD server; `mri-qpan benchmark soak` holds a long one."""

import json
from pathlib import Path

import numpy as np
import pytest
from mrd_files import header_xml, lines, random_kspace, write
from typer.testing import CliRunner

from mri_qpan.cli.main import app
from mri_qpan.recon.soak import Held, Soak, mutated


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux what a process holds")
def test_nothing_is_held_on_to(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", header_xml((32, 24, 1)), lines(random_kspace(1, 24, 32)))
    arguments = ["benchmark", "soak", str(path), "-o", str(tmp_path), "-m", "zero-filled"]
    result = CliRunner().invoke(app, [*arguments, "--sessions", "150"], catch_exceptions=False)
    assert "0 images wrong" in result.output
    found = json.loads((tmp_path / "benchmark-soak.json").read_text())
    assert found["command"].startswith("mri-qpan")
    assert found["machine"]["processor"]
    assert found["good"] + found["damaged"] == 150
    assert min(found["good"], found["damaged"]) > 40
    first, last = found["held"][10], found["held"][-1]
    assert last["threads"] <= first["threads"] + 1
    assert last["files"] <= first["files"] + 1
    assert found["growth_mib"] < 20


def test_growth_is_that_of_the_settled_samples() -> None:
    held = [Held(n, 1000.0 if n < 3 else 100.0 + n, 1, 1) for n in range(11)]
    assert Soak(held=held[3:]).growth_mib == pytest.approx(6)
    assert Soak(held=held[:1]).growth_mib == 0


def test_damage_is_of_every_kind_and_comes_again() -> None:
    whole = bytes(range(256)) * 40
    made = [mutated(whole, np.random.default_rng(seed)) for seed in range(200)]
    assert made == [mutated(whole, np.random.default_rng(seed)) for seed in range(200)]
    lengths = {len(data) for data in made}
    assert min(lengths) < len(whole) < max(lengths)
