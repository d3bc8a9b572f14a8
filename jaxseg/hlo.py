"""What the text of a compiled program says of its memory: collectives, the padding of tiles, copies, gathers."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Traffic", "collectives", "traffic"]

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
# an asynchronous collective is counted where it is done: there its type is the result's alone
_COLLECTIVE = re.compile(rf" = (.*?) ({_KINDS})(-done)?\(")
# an array's type, its dimensions, their order from the minor one, and the tile of the two minor ones
_ARRAY = re.compile(r"(pred|[sufb]f?[0-9]+[a-z0-9]*)\[([0-9,]*)\](?:\{([0-9,]*)(?::T\(([0-9,]+)\))?)?")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?(\S+) = (.*?) ([a-z][\w-]*)\(", re.MULTILINE)
_NO_ARRAY = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")


class Traffic(NamedTuple):
    """What the instructions of the entry computation write, each once; a loop's are not among them."""

    bytes: int  # tiles' padding included
    padding: int  # bytes of `bytes` that no element is in
    copied: int  # bytes of `bytes` that copies and transposes between layouts write
    indexed: int  # gathers and scatters, those within fusions too


def _integers(text: str | None) -> list[int]:
    return [int(n) for n in (text or "").split(",") if n]


def _sizes(type_text: str) -> Iterator[tuple[int, int]]:
    """Bytes of each array of a type, and with the padding of its tiles."""
    for dtype, dims, order, tile in _ARRAY.findall(type_text):
        bits = 8 if dtype == "pred" else int(re.findall("[0-9]+", dtype)[0])
        shape = _integers(dims)
        padded = list(shape)
        for axis, length in zip(_integers(order), reversed(_integers(tile)), strict=False):  # minor first
            padded[axis] = -(-shape[axis] // length) * length
        yield math.prod(shape) * bits // 8, math.prod(padded) * bits // 8


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Number and bytes of the collectives of each kind."""
    found: dict[str, tuple[int, int]] = {}
    for line in text.splitlines():
        match = _COLLECTIVE.search(line)
        if match:
            count, size = found.get(match[2], (0, 0))
            found[match[2]] = count + 1, size + sum(n for n, _ in _sizes(match[1]))
    return found


def traffic(text: str) -> Traffic:
    """See `Traffic`."""
    entry = text[text.index("\nENTRY ") :] if "\nENTRY " in text else text
    written = padding = copied = 0
    for name, type_text, operation in _INSTRUCTION.findall(entry):
        if operation in _NO_ARRAY or operation.endswith("-start"):  # a start's type names its operands, too
            continue
        sizes = list(_sizes(type_text))
        whole = sum(n for _, n in sizes)
        written += whole
        padding += whole - sum(n for n, _ in sizes)
        if operation in ("copy", "transpose") or (operation == "fusion" and name.startswith(("copy", "transpose"))):
            copied += whole
    return Traffic(written, padding, copied, len(re.findall(r" (?:gather|scatter)\(", text)))
