"""A space's fields as a stranger's file may give them: checks that name field and value."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import UsageError

if TYPE_CHECKING:
    from ..space import Space

S = TypeVar("S", bound="Space")
NONE: Mapping[str, Any] = MappingProxyType({})


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


def read_space(
    space: type[S],
    given: Mapping[str, object],
    *,
    lists: Mapping[str, Any] = NONE,
    tables: Mapping[str, Any] = NONE,
) -> S:
    """A space from its plain JSON fields; UsageError names an unknown, missing or wrong field.

    `lists` are the fields that hold a list of tables, and `tables` those that hold one, with the
    dataclass of each.
    """
    found = tuples(given)
    try:
        for name, kind in lists.items():
            found[name] = tuple(kind(**tuples(each)) for each in _tables(space, name, found))
        for name, kind in tables.items():
            if not isinstance(found.get(name), Mapping):
                raise UsageError(
                    f"space {space.family}: {name} = {found.get(name)!r}; a table of its options "
                    "expected"
                )
            found[name] = kind(**tuples(found[name]))  # type: ignore[arg-type]
        return space(**found)
    except TypeError as error:  # a missing or an unknown field; values are checked in there
        known = [field.name for field in fields_of(space)]  # type: ignore[arg-type]
        raise UsageError(f"space {space.family}: {error}; fields: {known}") from None


def _tables(
    space: "type[Space]", name: str, given: Mapping[str, object]
) -> list[Mapping[str, object]]:
    value = given.get(name)
    if not isinstance(value, tuple) or not all(isinstance(each, Mapping) for each in value):
        raise UsageError(f"space {space.family}: {name} must be a list of tables")
    return list(value)
