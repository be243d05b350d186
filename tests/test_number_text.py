"""Numbers as text: the same number looks the same wherever it came from."""

import math

import pytest

from edgemin_utils.number_text import number_text, p_value_text, percent, signed, with_interval


def test_noise_of_arithmetic_does_not_decide_a_rounding():
    mean = (0.7945 - 0.798) * 100  # -0.35 and a little
    assert mean != -0.35 and number_text(mean) == number_text(-0.35)


@pytest.mark.parametrize(
    "value, digits, sign, text",
    [
        (-0.04, 1, "", "0.0"),
        (0.0, 1, "+", "0.0"),
        (0.05001, 1, "+", "+0.1"),
        (1234567, 0, "", "1,234,567"),
        (-1.5, 2, "", "-1.50"),
    ],
)
def test_sign_and_decimals(value, digits, sign, text):
    assert number_text(value, digits, sign) == text


def test_intervals_stand_in_brackets_where_there_are_any():
    assert percent(0.8613, 0.837, 0.8834) == "86.1 [83.7, 88.3]"
    assert percent(1.0) == "100.0" and percent(0.5, unit=" %") == "50.0 %"
    assert with_interval(-1, -2, 0.01, sign="+", unit=" points") == "-1.0 points [-2.0, 0.0]"
    assert with_interval(1, None, None, 2) == with_interval(1, math.nan, math.nan, 2) == "1.00"
    assert signed(1.25, 2) == "+1.25"


def test_small_p_values():
    assert (p_value_text(0.0009), p_value_text(0.001)) == ("<0.001", "0.001")
