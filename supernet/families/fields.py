"""A space's fields as a stranger's file may give them: checks that name field and value."""

from collections.abc import Mapping

from ..errors import UsageError


def check_counts(where: str, values: object, least: int = 1) -> None:
    """UsageError unless it is a tuple of whole numbers of at least `least`."""
    if not isinstance(values, tuple) or any(type(v) is not int or v < least for v in values):
        raise UsageError(f"{where} = {values!r}; whole numbers of at least {least} expected")


def check_multiples(where: str, values: tuple[int, ...], of: int, why: str) -> None:
    """UsageError unless each value is a multiple of `of`; `why` names the field that asks for it."""
    if wrong := [value for value in values if value % of]:
        raise UsageError(f"{where} = {values}; multiples of {why} = {of} expected, not {wrong[0]}")


def check_flag(where: str, value: object) -> None:
    """UsageError unless it is true or false."""
    if type(value) is not bool:
        raise UsageError(f"{where} = {value!r}; true or false expected")


def tuples(fields: Mapping[str, object]) -> dict[str, object]:
    """The same fields with JSON's lists as tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
