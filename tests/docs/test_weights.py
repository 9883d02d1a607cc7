"""The weights that lie in docs/brain are those that their list of hashes names."""

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "brain"


def test_the_list_names_every_file_with_its_hash():
    listed = dict(reversed(line.split("  ")) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*.safetensors")
    }
    assert listed == found
