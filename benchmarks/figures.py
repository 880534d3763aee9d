"""Medians and spreads: the only statistics there are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> list[float]:
    """Return the median, and the quartiles around it."""
    if len(values) == 1:
        return [values[0]] * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [round(value, 4) for value in (middle, low, high)]


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the spread of the ratios, each of two figures from the same round."""
    return spread([n / d for n, d in zip(numerators, denominators, strict=True)])
