"""The widths that a device may train and infer in; importable without torch."""

from typing import Literal, get_args

from .errors import UsageError

Bits = Literal[32, 8, 4, 2]
"""32 is float, 8 and 4 are integers, 2 is ternary."""
ALLOWED: tuple[int, ...] = get_args(Bits)
FLOAT_BITS: Bits = 32
TERNARY_BITS: Bits = 2


def check_bits(field: str, bits: object) -> None:
    """UsageError names the field, its value and the allowed widths."""
    if type(bits) is not int or bits not in ALLOWED:
        raise UsageError(f"{field} = {bits!r}; allowed: {', '.join(map(str, ALLOWED))}")
