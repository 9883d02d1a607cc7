"""What the writers' tests say of where their images come from."""

PROVENANCE: dict[str, object] = {
    "method": "tv",
    "version": "0",
    "input": "a.h5",
    "mask_ratio": 1.0,
    "mask_hash": "0",
}
