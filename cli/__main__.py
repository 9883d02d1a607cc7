"""`python -m mri_qpan.cli`: the same as the `mri-qpan` command."""

from mri_qpan.cli.main import run

run()
