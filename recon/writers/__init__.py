"""Images to files: `write_<format>(path, series)`."""

from mri_qpan.recon.writers.ismrmrd import write_ismrmrd
from mri_qpan.recon.writers.nifti import write_nifti
from mri_qpan.recon.writers.png import write_png, write_study_png

__all__ = ["write_ismrmrd", "write_nifti", "write_png", "write_study_png"]
