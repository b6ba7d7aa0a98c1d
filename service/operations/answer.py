"""What an operation found out, before anybody has asked for a media type."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from vaeserve.bundle.arrays import ByteImages


@dataclass(frozen=True)
class Answer:
    """Arrays by their name in JSON, the main one first; four-dimensional uint8 arrays are images.

    `fields` go into JSON alone, `more` into .npz alone. As a picture, what `picture` returns is shown (None:
    the array `images`): it is called only when a picture was asked for, and works on `picture_size` values.
    Several images are laid out in `columns` (None: about square) with a `gap` in pixels, or shown for
    `duration` milliseconds each.
    """

    arrays: dict[str, NDArray[Any]]
    seed: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    picture: Callable[[], ByteImages] | None = None
    picture_size: int = 0
    columns: int | None = None
    gap: int = 2
    duration: int = 80

    @property
    def images(self) -> ByteImages:
        """uint8 [n, h, w, c], what a picture shows."""
        return self.arrays["images"] if self.picture is None else self.picture()

    @property
    def size(self) -> int:
        """How many values the arrays have, a measure of the time to write them."""
        arrays = (*self.arrays.values(), *self.more.values())
        return sum(array.size for array in arrays)
