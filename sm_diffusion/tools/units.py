"""Numbers as people read them."""

from __future__ import annotations


def human(value: float) -> str:
    """1.23e+15 -> 1.23 P, with k M G T P E."""
    for unit in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if abs(value) < 1000 or unit == "Z":
            return f"{value:.3g} {unit}".strip() if unit else f"{value:.3g}"
        value /= 1000
    raise AssertionError("unreachable")


def human_bytes(value: float) -> str:
    """In MiB or GiB."""
    return f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.1f} MiB"


def duration(days_: float) -> str:
    """Days, or hours, or minutes, or seconds: whichever is at least 1."""
    for value, unit in ((days_, "days"), (days_ * 24, "hours"), (days_ * 1440, "minutes")):
        if value >= 1:
            return f"{value:,.3g} {unit}"
    return f"{days_ * 86_400:,.3g} seconds"
