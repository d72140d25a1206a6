"""Numbers as people and TeX write them: a final answer is found, parsed whole and valued, never evaluated as code."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, NamedTuple

_GROUPED = r"\d{1,3}(?:(?:,\d{3})+|(?:[ \u00a0\u2009\u202f'\u2019]\d{3})+)(?!\d)"
# Points for thousands: 1.200,5 with a comma for decimals; 1.000.000, which can be nothing else.
_POINTED = r"\d{1,3}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})(?![.,]?\d)"
_DIGITS = re.compile(rf"{_POINTED}|(?:{_GROUPED}|\d+(?:_\d+)*)(?:\.\d+)?|\.\d+")
_EITHER = re.compile(r"\s*[A-Za-z\u00b0]*,?\s+or\s+(?:[A-Za-z]+\s+)?")
_NEGATED = re.compile(r"(?:\bnot|n't)\s+$", re.IGNORECASE)
_BOUND = re.compile(r"(?:(?<!<)<=?|(?<=[\w)] )>|(?<![-=>])>=|[\u00b1\u2264\u2265\u2260])\s*[-+$\u20ac\u00a3]*$")
_EXPONENT = re.compile(r"[eE]([-+]?\d{1,4})(?![\w.])")
_WORDS = re.compile(r"[ ~]?([A-Za-z\u00b0\u03bc]+)")
_SUPERSCRIPTS = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
_HALVES = {"\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3", "\u215b": "1/8"}
_MARKERS = re.compile(r"####|answer\s*(?:is|:|=)(?!\s*not\b)", re.IGNORECASE)
# In a box, what makes more of its number: functions, bounds, remainders and what is given as several.
_MORE = re.compile(
    r"\\(?:sin|cos|tan|cot|sec|csc|arc|sinh|cosh|tanh|log|ln|lg|exp|binom|pm|mp|le|leq|ge|geq|ne|neq|lt|gt|bmod|mod|pmod|"
    r"infty|approx|choose)(?![a-z])|[<>!;\u00b1\u2264\u2265\u2260\u221e]|\b(?:sin|cos|tan|log|ln|or|and|mod)\b"
)
# Units that change what a number says; other words beside a number do not.
_UNITS = {
    name: names[0]
    for names in (
        ("mm", "millimeters", "millimetres"), ("cm", "centimeters", "centimetres"), ("km", "kilometers", "kilometres"),
        ("m", "meters", "metres", "meter", "metre"), ("mg",), ("g", "grams", "gram"), ("kg", "kilograms", "kilogram"),
        ("s", "seconds", "second", "sec"), ("min", "minutes", "minute"), ("h", "hours", "hour"), ("days", "day"),
        ("weeks", "week"), ("years", "year"), ("ml",), ("l", "liters", "litres"), ("feet", "ft", "foot"),
        ("inches", "inch"), ("miles", "mile"), ("cents", "cent"), ("dollars", "dollar"),
        ("degrees", "degree", "\u00b0"), ("million",), ("billion",), ("thousand", "k"), ("trillion",),
        ("dozen", "dozens"),
    )
    for name in names
}  # fmt: skip
_SCALES = {"dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_LARGEST = 4096  # exponents beyond it are not worked out


class Quantity(NamedTuple):
    """What an expression says: its value, whether that is exact, and its unit ("" for none)."""

    value: Fraction | float
    unit: str

    @property
    def integer(self) -> bool:
        """Whether it is exactly an integer."""
        return isinstance(self.value, Fraction) and self.value.denominator == 1


def final_quantity(text: str) -> Quantity | None:
    """Returns the quantity that a text gives as its answer, or None.

    It is looked for in the last ``\\boxed{...}``, else behind the last "####" or "answer is", else it is the last
    expression. Fractions, roots, powers, scientific notation, percent, grouped thousands, TeX and sums are read whole;
    an expression with a variable in it is none, and so are a box with several numbers, a bound or a function, a bound
    outside a box ("<5"), two different numbers with "or" between them, and a number behind "not".

    Example:
        >>> final_quantity("so it costs \\\\boxed{\\\\frac{3}{2}} in all"), final_quantity("2x + 1")
        (Quantity(value=Fraction(3, 2), unit=''), None)
    """
    boxed = _boxed(text)
    if boxed is not None:
        found = _expressions(_plain(boxed))
        return found[0] if len(found) == 1 and not _MORE.search(boxed) else None
    markers = list(_MARKERS.finditer(text))
    if markers:
        found = _expressions(_plain(text[markers[-1].end() :].strip().split("\n")[0]))
        if found:
            return found[-1] if text[markers[-1].start()] == "#" or "=" in text[markers[-1].end() :] else found[0]
    found = _expressions(_plain(text))
    return found[-1] if found else None


def same_quantity(found: Quantity, expected: Quantity, tolerance: float) -> bool:
    """Returns whether two quantities are equal: integers exactly, others to a relative tolerance, in the same unit.

    Example:
        >>> same_quantity(Quantity(Fraction(1, 2), ""), Quantity(0.5, ""), 1e-6)
        True
    """
    if found.unit and expected.unit and found.unit != expected.unit:
        return False
    if expected.integer and isinstance(found.value, Fraction):
        return found.value == expected.value
    try:
        a, b = float(found.value), float(expected.value)
    except OverflowError:
        return found.value == expected.value
    if expected.integer:
        tolerance = min(tolerance, 1e-12)
    return math.isclose(a, b, rel_tol=tolerance)


def _boxed(text: str) -> str | None:
    """Returns what the last box of TeX holds, with its braces balanced."""
    place = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if place < 0:
        return None
    start = text.index("{", place) + 1
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start:at]
    return text[start:]


def _plain(text: str) -> str:
    """Returns text with the signs of TeX and of typography replaced by + - * / ^ ( ) sqrt pi."""
    text = re.sub("[\u2212\ufe63\uff0d]|(?<!\\w)\u2013(?=\\d)", "-", text)
    text = re.sub("[\u2044\u2215]", "/", re.sub(r"\b(?:minus|negative)\s+(?=[\d.$])", "-", text, flags=re.IGNORECASE))
    for glyph, written in _HALVES.items():
        text = re.sub(rf"(\d)\s?{glyph}", rf"(\1+{written})", text).replace(glyph, written)
    text = re.sub("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+", lambda m: "^" + m[0].translate(_SUPERSCRIPTS), text)
    text = re.sub(r"(\d),?\\!(?=\d{3})|(\d)\{,\}(?=\d{3})|(\d)(?:\\[,;: ])(?=\d{3})", r"\1\2\3", text)
    text = re.sub(r"\\(?:left|right|displaystyle|mathrm|!|,|;|:|quad)(?![A-Za-z])|\\[()\[\]]", " ", text)
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\^\s*(?:\{\s*)?\\?(?:circ|\u00b0)\s*\}?", " degrees", text)
    text = re.sub(
        r"(?<![\d./])(\d+)(?:\s*\\[dtc]?frac\s*\{(\d+)\}\s*\{|\s(\d+)/)(\d+)\}?(?![\d/])", r"(\1+\2\3/\4)", text
    )
    text = re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)", r"((\1)/(\2))", text)
    inner = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
    for _ in range(8):
        before = text
        text = re.sub(rf"\\[dtc]?frac\s*{inner}\s*{inner}", r"((\1)/(\2))", text)
        text = re.sub(rf"\\sqrt\s*{inner}", r"sqrt(\1)", text)
        text = re.sub(rf"\^\s*{inner}", r"^(\1)", text)
        if text == before:
            break
    text = re.sub(r"\\sqrt\s*(\d)|\u221a\s*(\d+(?:\.\d+)?)", r"sqrt(\1\2)", text).replace("\u221a", "sqrt")
    text = (
        re.sub(r"\s*(?:\\(?:cdot|times)(?![A-Za-z])|[\u00d7\u00b7\u22c5])\s*", "*", text)
        .replace("\\div", "/")
        .replace("\u00f7", "/")
    )
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))", "*", text).replace("\\%", "%")
    text = re.sub(r"(?<=[\w)])\*\*(?=[\w(-])", "^", text)
    text = re.sub(r"(?:(?<=\s)|^)[*_]+(?=\S)|(?<=\S)[*_]+(?=[\s.,;:!?]|$)", "", text)  # emphasis of Markdown
    text = re.sub(r"[(\[](?!\d{1,3}(?:,\d{3})+[)\]])\s*[-\d./]+(?:\s*,\s*[-\d./]+)+\s*[)\]]", " tuple ", text)
    text = re.sub(r"\b\d{4}-\d\d-\d\d\b|\b\d\d?/\d\d?/\d{2,4}\b", " date ", text)
    text = re.sub(r"\\pi(?![A-Za-z])|\u03c0", "pi", text)
    text = re.sub(r"\\pm(?![a-z])|\+/-", "\u00b1", re.sub(r"\\(?:[lg]eq?(?:slant)?|neq?)(?![a-z])", "\u2264", text))
    text = re.sub(r"\\lvert\s*|\s*\\rvert(?![a-z])", "|", text)
    return re.sub(
        r"\\\$|[$\u20ac\u00a3\u00a5]|\\(?=[A-Za-z])", "", re.sub(r"-\s?\\?([$\u20ac\u00a3\u00a5])", "-", text)
    )


def _expressions(text: str) -> list[Quantity | None]:
    """Returns the quantities of a plain text in order, without what is part of a name or of an algebraic expression.

    None stands for a bound, and for what is given as one of two that differ.
    """
    found: list[Quantity | None] = []
    read: Quantity | None = None
    at = last = 0
    start = re.compile(r"[-+]?\s?\(*\s?[-+]?\s?(?:\d|\.\d|sqrt|pi(?![A-Za-z])|\|(?=[-+(]?[\d.]))")
    while match := start.search(text, at):
        begin = match.end() - len(match[0].lstrip())
        before = text[:begin].rstrip()
        if text[begin] in "-+" and (before[-1:].isalnum() or before[-1:] in (")", "]")) and begin == len(before):
            begin += 1  # the sign is between two things
        parser = _Parser(text, begin)
        value = parser.read()
        if value is None:
            at = match.end()
            continue
        at = max(parser.at, match.end())
        if not _algebraic(text, begin, parser.at) and not _NEGATED.search(text[:begin]):
            unit = _unit(text, parser.at)
            scale = _SCALES.get(unit)
            either, read = read, Quantity(value * scale if scale else value, "" if scale else unit)
            found.append(read)
            if _BOUND.search(text[:begin]):
                found[-1] = read = None
            if either and read and _EITHER.fullmatch(text, last, begin) and not same_quantity(read, either, 1e-9):
                found[-2:] = [None, None]
            last = parser.at
    return found


def _algebraic(text: str, begin: int, end: int) -> bool:
    """Whether an expression is a part of a name, or of a larger expression that could not be read."""
    before, after = text[:begin], text[end:]
    if before[-1:].isalpha() or before[-1:] == "_" or re.search(r"\d:$", before) or re.match(r":\d", after):
        return True
    if re.search(r"(?:^|[^A-Za-z])[A-Za-z]\s*[-+*/^]\s*$|[)\]]\s*[*/^]\s*$|[*/^]\s*$", before):
        return True
    spaced = text[begin] in "+-" and text[begin + 1 : begin + 2] == " "
    if spaced and re.search(r"(?:^|[^A-Za-z])[A-Za-z]\s*$|\)\s*$", before):
        return True
    glued = re.match(r"[A-Za-z_]+", after)
    if glued and glued[0].lower() not in _UNITS and glued[0].lower() not in ("st", "nd", "rd", "th", "k"):
        return True
    return re.match(r"\s*(?:[*^]\s*\S|[-+/]\s*(?:\d*[A-Za-z](?![A-Za-z])|\())", after) is not None


def _unit(text: str, at: int) -> str:
    match = _WORDS.match(text, at)
    return _UNITS.get(match[1].lower(), "") if match else ""


class _Parser:
    """Recursive descent: sum of products of powers. ``read`` leaves ``at`` behind the longest expression."""

    def __init__(self, text: str, at: int) -> None:
        self.text, self.at = text, at

    def read(self) -> Fraction | float | None:
        try:
            return self._sum()
        except (ZeroDivisionError, OverflowError, ValueError, RecursionError):
            return None

    def _sum(self) -> Fraction | float | None:
        value = self._signed()
        while value is not None:
            kept = self.at
            sign = self._sign("+-")
            more = self._product() if sign else None
            if more is None:
                self.at = kept
                return value
            value = value + more if sign == "+" else value - more
        return None

    def _signed(self) -> Fraction | float | None:
        sign = self._sign("+-")
        value = self._product()
        return -value if sign == "-" and value is not None else value

    def _product(self) -> Fraction | float | None:
        value = self._power()
        while value is not None:
            kept = self.at
            sign = self._sign("*/")
            if not sign and not re.compile(r"\s?(?:sqrt|pi(?![A-Za-z])|\()").match(self.text, self.at):
                return value
            more = self._power(signed=bool(sign))
            if more is None:
                self.at = kept
                return value
            value = value / more if sign == "/" else value * more
        return None

    def _power(self, signed: bool = False) -> Fraction | float | None:
        if signed and self._sign("-"):
            inner = self._power()
            return None if inner is None else -inner
        value: Any = self._atom()
        kept = self.at
        if value is not None and self._sign("^"):
            sign = self._sign("-")
            exponent: Any = self._atom()
            if exponent is None:
                self.at = kept
                return value
            exponent = -exponent if sign else exponent
            if abs(exponent) > _LARGEST or (abs(value) > 10**6 and abs(exponent) > 64):
                raise OverflowError
            if isinstance(exponent, Fraction) and exponent.denominator == 1:
                return value ** int(exponent)
            power = float(value) ** float(exponent)
            return None if isinstance(power, complex) else power
        return value

    def _atom(self) -> Fraction | float | None:
        self._space()
        for name in ("sqrt", "pi"):
            if self.text.startswith(name, self.at):
                self.at += len(name)
                if name == "pi":
                    return math.pi
                root = self._atom()
                return None if root is None else _root(root)
        if self.text[self.at : self.at + 1] == "(":
            kept, self.at = self.at, self.at + 1
            value = self._sum()
            self._space()
            if value is None or self.text[self.at : self.at + 1] != ")":
                self.at = kept
                return None
            self.at += 1
            return self._percent(value)
        if re.compile(r"\|\S").match(self.text, self.at):  # a spaced bar is a table's
            kept, self.at = self.at, self.at + 1
            value = self._sum()
            if value is None or self.text[self.at : self.at + 1] != "|":
                self.at = kept
                return None
            self.at += 1
            return abs(value)  # type: ignore[return-value]
        match = _DIGITS.match(self.text, self.at)
        if not match:
            return None
        self.at = match.end()
        digits = match[0].replace(".", "").replace(",", ".") if re.fullmatch(_POINTED, match[0]) else match[0]
        value = Fraction(re.sub(r"[^\d.]", "", digits))
        exponent = _EXPONENT.match(self.text, self.at)
        if exponent:
            self.at = exponent.end()
            value *= Fraction(10) ** int(exponent[1])
        return self._percent(value)

    def _percent(self, value: Fraction | float) -> Fraction | float:
        match = re.compile(r"\s?(?:%|percent\b|per cent\b)").match(self.text, self.at)
        if not match:
            return value
        self.at = match.end()
        return value / 100

    def _sign(self, signs: str) -> str:
        """Takes one of the signs, with at most a space beside it, and returns it; "" for none of them."""
        match = re.compile(rf"\s?([{re.escape(signs)}])\s?").match(self.text, self.at)
        if not match:
            return ""
        self.at = match.end()
        return match[1]

    def _space(self) -> None:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1


def _root(value: Fraction | float) -> Fraction | float:
    if value < 0:
        raise ValueError("a root of a negative number")
    if isinstance(value, Fraction):
        above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if above**2 == value.numerator and below**2 == value.denominator:
            return Fraction(above, below)
    return math.sqrt(value)
