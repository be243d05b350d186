"""Numbers as text, rounded alike wherever they stand: in tables, in sentences, in the README."""

from typing import SupportsFloat

import pandas as pd


def number_text(value: SupportsFloat, digits: int = 1, sign: str = "") -> str:
    """A number with that many decimals and commas between thousands.

    What floating-point arithmetic leaves behind the ninth decimal does not decide how it is rounded, and a zero has no
    sign: "-0.0" reads as a loss where there is none.

    Args:
        value: the number.
        digits: decimals.
        sign: "+" to show the sign of numbers above zero, too.
    """
    text = f"{round(float(value), 9):{sign},.{digits}f}"
    return text if text.strip("+-0.,") else text.lstrip("+-")


def signed(value: SupportsFloat, digits: int = 1) -> str:
    """A difference: with its sign above zero, too."""
    return number_text(value, digits, "+")


def with_interval(
    value: SupportsFloat,
    low: SupportsFloat | None = None,
    high: SupportsFloat | None = None,
    digits: int = 1,
    sign: str = "",
    unit: str = "",
) -> str:
    """A number, its unit and its interval in brackets: "86.1 % [83.7, 88.3]" for the unit " %". Without an interval
    (None or NaN) there are no brackets."""
    shown = number_text(value, digits, sign) + unit
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return shown
    return f"{shown} [{number_text(low, digits, sign)}, {number_text(high, digits, sign)}]"


def percent(fraction: float, low: float | None = None, high: float | None = None, unit: str = "") -> str:
    """A fraction in percent with its interval behind it: "86.1 [83.7, 88.3]"."""
    low, high = (None if end is None else 100 * end for end in (low, high))
    return with_interval(100 * fraction, low, high, unit=unit)


def p_value_text(value: float) -> str:
    """A p-value with three decimals, small ones as "<0.001"."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
