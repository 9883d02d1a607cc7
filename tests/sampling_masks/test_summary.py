import hashlib

import numpy as np

from mri_qpan.sampling_masks import make_mask, mask_hash, ratio_of


def test_hash_is_the_documented_one():
    mask = np.zeros((2, 5), dtype=bool)
    mask[0, 0] = mask[1, 4] = True
    # Bits 1000 0000 01, filled up with zeros.
    expected = hashlib.sha256(b"2x5:" + bytes([0b10000000, 0b01000000])).hexdigest()[:12]
    assert mask_hash(mask) == expected


def test_hash_tells_shapes_and_masks_apart():
    mask = make_mask("lines", (100, 40), 0.25)
    masks = [mask, mask.reshape(40, 100), mask[None], ~mask, np.ones((3, 3), bool), np.ones((3, 4), bool)]
    assert len({mask_hash(m) for m in masks}) == len(masks)


def test_hash_does_not_depend_on_memory_layout():
    mask = make_mask("poisson", (33, 40), 0.25)
    assert mask_hash(np.asfortranarray(mask)) == mask_hash(mask)


def test_ratio():
    assert ratio_of(np.array([[True, False], [False, False]])) == 0.25
