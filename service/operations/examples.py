"""Values that the examples of several operations are made of."""

from vaeserve.bundle.manifest import Manifest

# A white square on black, 28 × 28, as a PNG file in base64. It is fitted to the size of any model.
SQUARE = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAHElEQVR42mNgGBmAEcb4j0WQCZ/OUUlCkiMFAABjZgEYgVH3vQAAAABJ"
    "RU5ErkJggg=="
)


def latent(manifest: Manifest, value: float = 0.5) -> list[object]:
    """A row of latents in the model's shape, each of them `value`, as nested lists."""
    row: list[object] = [value] * manifest.latent.shape[-1]
    for size in manifest.latent.shape[-2::-1]:
        row = [list(row) for _ in range(size)]
    return row
