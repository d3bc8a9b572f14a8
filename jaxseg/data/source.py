"""What a source of labelled images is, and the error that names its bad files."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

__all__ = ["IGNORE", "DataError", "Example", "Source", "voc_palette"]

IGNORE = 255  # the label that losses and metrics skip

Example = dict[str, np.ndarray]


@runtime_checkable  # so that the tests can check annotations
class Source(Protocol):
    """A random-access sequence of examples (Grain's RandomAccessDataSource), cheap to copy and to pickle.

    `source[i]` is a decoded example at its own size: "image" uint8 `[H, W, 3]`, "label" int32 `[H, W]` with
    255 = ignore; maps of other names and the same `[H, W]` ride along. `source.name(i)` names it in errors.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def palette(self) -> np.ndarray:
        """uint8 `[K, 3]`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def name(self, index: int) -> str: ...


class DataError(ValueError):
    """Data that cannot be used, with every finding in `problems` and the first ten in the message.

    Raised once, by whoever looks at the files, so that one run of a command shows all there is to mend.
    """

    def __init__(self, *problems: str, heading: str | None = None):
        self.problems = problems
        self.heading = heading
        lines = list(self.problems[:10])
        if len(self.problems) > 10:
            lines.append(f"... and {len(self.problems) - 10} more")
        if heading is not None:
            lines = [heading, *(f"  {line}" for line in lines)]
        super().__init__("\n".join(lines))

    def __reduce__(self):
        return _rebuild, (self.problems, self.heading)


def _rebuild(problems: tuple[str, ...], heading: str | None) -> DataError:
    return DataError(*problems, heading=heading)  # exceptions pickle without keywords


def voc_palette(num_classes: int) -> UInt8[np.ndarray, "k 3"]:
    """The PASCAL VOC colour map: the bits of the label, dealt in turn to red, green and blue from the top."""
    labels = np.arange(num_classes)
    palette = np.zeros((num_classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette
