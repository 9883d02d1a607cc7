"""`mri-qpan send` as a user starts it wrongly."""

import subprocess
import sys
from pathlib import Path

from mrd_files import lines, random_kspace, write
from mrd_sessions import XML


def test_the_raw_file_is_no_output(tmp_path: Path) -> None:
    raw = write(tmp_path / "scan.h5", XML, lines(random_kspace(1, 24, 32)))
    before = raw.read_bytes()
    (tmp_path / "link.h5").symlink_to(raw)
    command = [sys.executable, "-m", "mri_qpan.cli", "send", str(raw), "--to", "127.0.0.1:9", "-o"]
    done = subprocess.run([*command, str(tmp_path / "link.h5")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is the raw file itself" in done.stderr
    assert raw.read_bytes() == before
