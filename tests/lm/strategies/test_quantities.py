"""Answers that are numbers are read whole."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from heldout.lm import judge_number
from heldout.lm.strategies.quantities import Quantity, final_quantity, same_quantity

EQUAL = [
    ("−3", "-3"),
    ("-$3", "-3"),
    ("$-3", "-3"),
    ("1/2", "0.5"),
    ("so 12.0", "12"),
    ("1,200", "1200"),
    ("12%", "0.12"),
    ("\\boxed{42}", "42"),
    ("\\boxed{\\frac{1}{2}}", "0.5"),
    ("\\frac12", "0.5"),
    ("\\dfrac{3}{4}", "0.75"),
    ("1 200", "1200"),
    ("1'200", "1200"),
    ("1_200", "1200"),
    ("10,\\!000", "10000"),
    ("10{,}000", "10000"),
    ("6.02 x 10^23", "6.02e23"),
    ("6.02\\times10^{23}", "6.02e23"),
    ("6.02×10²³", "6.02e23"),
    ("\\sqrt{4}", "2"),
    ("2\\sqrt{3}", "3.4641016151"),
    ("√2", "1.41421356"),
    ("3\\pi", "9.42477796"),
    ("12 cm", "12"),
    ("12cm", "12"),
    ("The answer is 7 apples.", "7"),
    ("3 + 4 = 7", "7"),
    ("7 - 3", "4"),
    ("#### 72", "72"),
    ("it is 5%", "0.05"),
    ("50\\%", "0.5"),
    ("½", "0.5"),
    ("1½", "1.5"),
    ("2^{10}", "1024"),
    ("\\$5", "5"),
    ("x = 5", "5"),
    ("$x=5$", "5"),
    ("It costs 1,200.0 in all", "1200"),
    ("5.", "5"),
    ("+5", "5"),
    ("(5)", "5"),
    ("3.14", "3.14"),
    ("about 3.", "3"),
    ("1.2 million", "1200000"),
    ("$\\frac{3}{2}$", "1.5"),
    ("-\\frac{1}{2}", "-0.5"),
    ("90^\\circ", "90"),
    ("90°", "90"),
    ("5\\text{ cm}", "5"),
    ("10 dollars", "10"),
    ("**42**", "42"),
    ("the 3rd", "3"),
    ("So 7-3=4", "4"),
    ("\\( 12 \\)", "12"),
    ("12 percent", "0.12"),
    ("\\frac{\\sqrt{3}}{2}", "0.8660254"),
    ("9999999999999999999999999999999999999999", "9999999999999999999999999999999999999999"),
    ("so the result: 2*3 = 6", "6"),
    ("5 m", "5 meters"),
    ("-7", "-7"),
    ("answer: -7", "-7"),
    ("100,000,000", "1e8"),
    ("2\\frac{1}{2}", "2.5"),
    ("2 1/2", "2.5"),
    ("1.200,5", "1200.5"),
    ("1.000.000", "1000000"),
    ("2 dozen eggs", "24"),
    ("The answer is |-5|", "5"),
    ("|5| + |-6|", "11"),
    (r"$\lvert -3 \rvert$", "3"),
    ("| apples | -5 |", "-5"),
    ("<b>5</b>", "5"),
    ("so 2 + 3 => 5", "5"),
    ("> 5", "5"),  # a quotation
    ("We need x > 3; the answer is 4", "4"),
    ("48/2=<<48/2=24>>24", "24"),
    ("1.234.567,25", "1234567.25"),
    ("The answer is 1/2 or 0.5", "0.5"),
    ("I tried 3 or 4; the answer is 7", "7"),
    ("It is 7, not 5.", "7"),
    ("The answer is not 5 but 7", "7"),
    (r"1.5\times 10^{3}", "1500"),
    (r"\boxed{1.5\times 10^{3}}", "1500"),
    (r"1.5\cdot 10^{3}", "1500"),
    (r"2\times 3", "6"),
    ("2 \u00d7 3", "6"),
    ("minus 3", "-3"),
    ("The answer is negative 3.", "-3"),
    ("\u20133", "-3"),
    ("1\u22152", "0.5"),
    ("1.5k", "1500"),
]
DIFFERENT = [
    *(
        (answer, "5")
        for answer in (
            r"\boxed{4, 5}",
            r"\boxed{\sin 5}",
            r"\boxed{\log 5}",
            r"\boxed{\binom{6}{5}}",
            r"\boxed{5!}",
            r"\boxed{\pm 5}",
            r"\boxed{x \ge 5}",
            r"\boxed{1<x<5}",
            r"\boxed{(-\infty, 5]}",
            r"\boxed{3 or 5}",
            r"\boxed{1;5}",
        )
    ),
    ("3/2", "1/2"),
    ("123456789", "123456790"),
    ("9.1e-31", "1.6e-19"),
    ("10,\\!000", "25,\\!000"),
    ("1.5 x 10^23", "6.02 x 10^23"),
    ("3", "-3"),
    ("-12", "12"),
    ("12%", "12"),
    ("120", "12"),
    ("no idea", "12"),
    ("\\frac{3}{2}", "\\frac{1}{2}"),
    ("3+\\sqrt{2}", "1+\\sqrt{2}"),
    ("\\sqrt{2}", "2"),
    ("2^10", "10"),
    ("1,5", "15"),
    ("5 km", "5 m"),
    ("1e5", "5"),
    ("2\\sqrt{3}", "3"),
    ("3\\pi", "3"),
    ("2x", "2"),
    ("x+1", "1"),
    ("x^2", "2"),
    ("w3", "3"),
    ("0", "1e-9"),
    ("1e-9", "0"),
    ("5", "5/6"),
    ("10:30", "30"),
    ("12 million", "12"),
    ("\\boxed{3} or 4", "4"),
    ("The answer is 3. Check: 4", "4"),
    ("1/0", "0"),
    ("(1,2)", "2"),
    ("7\\%", "7"),
    ("10^{-3}", "3"),
    ("1.5 × 10^23", "6.02 × 10^23"),
    ("-0.5", "0.5"),
    ("$-3", "3"),
    ("2 1/2", "1/2"),
    ("9999999999999999999999999999999999999999", "9999999999999999999999999999999999999998"),
    (r"1.5\times 10^{3}", r"1.6\times 10^{3}"),
    ("minus 3", "3"),
    ("3\u20135", "-5"),
    ("1.5k", "1.5"),
    ("3 or 5", "5"),
    ("3 or 5", "3"),
    ("The answer is 3 km or 5 km", "3"),
    ("The answer is 3, or maybe 5.", "3"),
    ("The answer is not 5", "5"),
    ("It isn't 5.", "5"),
    ("1.200,5", "5"),
    ("1.200,5", "1.2"),
    ("1.000.000", "1"),
    ("2 dozen", "2"),
    ("|-5|", "-5"),
    ("The answer is <5", "5"),
    ("x > 5", "5"),
    ("#### >= 5", "5"),
    (r"x \le 5", "5"),
    (r"\pm 5", "5"),
    ("12 +/- 2", "2"),
    ("5 < 6", "6"),
    ("at |x", "5"),
]


@pytest.mark.parametrize(("response", "reference"), EQUAL)
def test_equal_numbers_in_other_words_are_right(response, reference):
    assert judge_number()("", response, reference)


@pytest.mark.parametrize(("response", "reference"), DIFFERENT)
def test_other_numbers_are_wrong(response, reference):
    assert not judge_number()("", response, reference)


@pytest.mark.parametrize(
    "text", ["", "none", "2x + 1", "x^2", "on 2020-05-01", "at 10:30", "(1, 2)", "9^9^9^9", "((((1", "w3"]
)
def test_what_is_no_number_is_none(text):
    assert final_quantity(text) is None


def test_sums_products_and_powers_have_the_value_of_python():
    draw = random.Random(0)
    for _ in range(200):
        a, b, c = (draw.randint(1, 30) for _ in range(3))
        first, second = draw.choice("+-*/"), draw.choice("+-*/")
        text = f"{a} {first} {b} {second} {c}"
        exact = eval(f"Fraction({a}) {first} Fraction({b}) {second} Fraction({c})")
        assert final_quantity(text) == Quantity(exact, ""), text
        assert final_quantity(f"-{a}^{c % 5}").value == -(a ** (c % 5))


def test_integers_are_exact_and_the_tolerance_is_relative():
    big = Fraction(10**18)
    assert not same_quantity(Quantity(big + 1, ""), Quantity(big, ""), 1e-3)
    assert same_quantity(Quantity(Fraction("1e-30"), ""), Quantity(Fraction("1.0000001e-30"), ""), 1e-6)
    assert not same_quantity(Quantity(Fraction(0), ""), Quantity(Fraction("1e-9"), ""), 1e-6)
    with pytest.raises(ValueError, match="tolerance must be"):
        judge_number(float("nan"))
