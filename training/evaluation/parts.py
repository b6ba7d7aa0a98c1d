"""The parts of a bundle that it can do without: a finished training is published in any case."""

import contextlib
from collections.abc import Iterator

from training.data.images import Say


class Parts:
    """Computes parts of a bundle, and records which are missing and why.

    `say` receives what is done and, after the verb `done`, what is missing; `missing` has a line for each
    missing part. With `all_needed` an error in a part is raised.
    """

    def __init__(
        self, say: Say = lambda text: None, *, done: str = "published", all_needed: bool = False
    ) -> None:
        self.say = say
        self.done = done
        self.all_needed = all_needed
        self.missing: tuple[str, ...] = ()

    @contextlib.contextmanager
    def optional(self, part: str) -> Iterator[None]:
        """Run the block; an error in it leaves out `part`. Interruptions and exits pass through."""
        try:
            yield
        # Whatever fails here, in a library or on some kind of data, must not cost hours of training.
        except Exception as error:
            if self.all_needed:
                raise
            kind = "" if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: "
            self.without(part, f"{kind}{error}")

    def without(self, part: str, reason: str) -> None:
        """Record that `part` is missing."""
        self.missing = (*self.missing, f"{part}: {reason}")
        self.say(f"{self.done} without {self.missing[-1]}")
