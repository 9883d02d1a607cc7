"""What every reader returns."""

from collections.abc import Iterator, Sequence

from mri_qpan.recon.kspace import Index, KSpace


class KSpaceStream(Iterator[KSpace]):
    """The images of one file, read one at a time in the order of their `Index`.

    Parameters
    ----------
    indices
        The images that will come.
    images
        Reads them.
    xml
        The file's ISMRMRD header, None where it has none.
    """

    def __init__(self, indices: Sequence[Index], images: Iterator[KSpace], xml: str | None) -> None:
        self.indices = list(indices)
        self.xml = xml
        self._images = images

    def __len__(self) -> int:
        """Return how many images the file holds, read or not."""
        return len(self.indices)

    def __next__(self) -> KSpace:
        """Read the next image."""
        return next(self._images)
