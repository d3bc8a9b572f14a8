"""Names as a model has them, whatever training code put before, between and beside them."""

import collections
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np

__all__ = ["WeightsMismatch", "averaged", "bare_entries", "unwrapped"]

COUNTERS = ("num_batches_tracked", "n_averaged")  # of batch norms, and of an averaged model


class WeightsMismatch(ValueError):
    """Names or shapes of a checkpoint that are not the model's."""


def averaged(names: Iterable[str]) -> list[str]:
    """Those names that say an exponential moving average: `model_ema`, `ema_state_dict`, `params_ema`, `ema.module.`"""
    return [name for name in names if re.search(r"(^|[_.])ema([_.]|$)", name)]


def bare_entries(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file's arrays without DataParallel's prefix, and counters of batches and of averaged models."""
    return {name.removeprefix("module."): array for name, array in state.items() if not name.endswith(COUNTERS)}


def _prefix(state: Iterable[str], names: Collection[str], where: str) -> str:
    """What stands before most of `names` in the file."""
    found: collections.Counter[str] = collections.Counter()
    lengths = sorted({len(name) for name in names}, reverse=True)
    for entry in state:
        starts = [len(entry) - length for length in lengths if length <= len(entry)]
        found.update(entry[:at] for at in starts if entry[max(at - 1, 0) : at] in ("", ".") and entry[at:] in names)
    for prefix in [p for p in found if p.split(".")[-2:-1] in (["backbone"], ["encoder"], ["body"])]:
        del found[prefix]  # a part of a whole model is no model in a wrapper
    most = max(found.values(), default=0)
    copies = [prefix for prefix, count in found.items() if count == most]
    if 2 * most < len(names) or "" in copies:
        return ""
    if len(copies) > 1 and len(averaged(copies)) != 1:
        raise WeightsMismatch(
            f"{where} holds the model {len(copies)} times, under {', '.join(copies)}: save one of them"
        )
    return (averaged(copies) or copies)[0]


def unwrapped(
    state: Mapping[str, np.ndarray], names: Collection[str], where: str = "the state_dict"
) -> dict[str, np.ndarray]:
    """The arrays of the model that has `names`, less counters and whatever a wrapper put before its own names.

    `module.` is DataParallel's, `_orig_mod.` torch.compile's, `model.` or the like Lightning's. What lies beside such
    a model, as the weights of a loss do, is left out. Of several copies the averaged one, `ema` in its name, is
    taken; WeightsMismatch where that leaves a choice.
    """
    kept = {name: array for name, array in state.items() if not name.endswith(COUNTERS)}
    state = {re.sub(r"(?<=\.)_orig_mod\.", "", name): array for name, array in kept.items()}
    prefix = _prefix(state, names, where)
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
