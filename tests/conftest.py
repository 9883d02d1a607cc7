from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; a test that needs it skips where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the project's real data (shared/data) are not beside this checkout")
    return SHARED_DATA
