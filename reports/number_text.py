"""Number text: numbers, shares, durations and lists as text."""

from __future__ import annotations


def seconds(value: float | None) -> str:
    """``420 ms``, ``4.21 s``; ``none`` without a value."""
    if value is None:
        return "none"
    if value == 0 or abs(value) >= 1:
        return f"{_three(value)} s"
    return f"{_three(value * 1e3)} ms" if abs(value) >= 1e-3 else f"{_three(value * 1e6)} µs"


def percent(share: float | None) -> str:
    """``93.1 %``; never rounded up to 100 %."""
    if share is None:
        return "none"
    text = f"{share * 100:.1f}"
    return f"{'99.9' if text == '100.0' and share < 1 else text.removesuffix('.0')} %"


def seconds_between(value: float, low: float, high: float) -> str:
    """A duration with its interval, ``1.4 s [1.2, 1.6]``, all in one unit."""
    scale, unit = (1e6, "µs") if abs(value) < 1e-3 else (1e3, "ms") if abs(value) < 1 else (1.0, "s")
    scale, unit = (1.0, "s") if value == 0 else (scale, unit)
    return f"{_three(value * scale)} {unit} [{_three(low * scale)}, {_three(high * scale)}]"


def percent_between(share: float, low: float, high: float) -> str:
    """A share with its interval: ``93.1 % [92.4, 93.8]``."""
    return f"{percent(share)} [{', '.join(percent(end).removesuffix(' %') for end in (low, high))}]"


def count(value: float | None) -> str:
    """``12,288`` or, below 100, up to three digits."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else _three(value)


def change(value: float, reference: float) -> str:
    """``+8.2 %``, ``-1.3 %``, relative to a reference; ``no change`` below 0.05 %."""
    if reference == 0:
        return "no change" if value == 0 else "from 0"
    share = (value - reference) / abs(reference) * 100
    if abs(share) >= 1000:
        return f"{value / reference:,.0f} times"
    return "no change" if abs(share) < 0.05 else f"{share:+.1f} %"


def listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def plural(number: int, noun: str) -> str:
    """``1 request``, ``2,000 requests``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _three(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
