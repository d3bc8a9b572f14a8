"""Some cases of a test in the plain suite, the rest in the slow tier."""

import pytest


def some_slow(cases, slow):
    """`cases` for `parametrize`, those in `slow` marked so; one in `slow` that is no case is an error."""
    assert set(slow) <= set(cases), set(slow) - set(cases)
    return [pytest.param(case, marks=[pytest.mark.slow] * (case in slow)) for case in cases]
