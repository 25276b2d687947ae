"""A fleet's file as JSON in which no key of an object hides another: Python would take the last one."""

import json
from collections.abc import Mapping
from typing import Any


class _Repeating(dict[str, Any]):
    """An object of which `names` are given more than once."""

    names: tuple[str, ...] = ()


def load(content: bytes) -> object:
    """What the bytes hold; ValueError or RecursionError where they are no JSON."""
    return json.loads(content, object_pairs_hook=_object)


def names_twice(found: object) -> tuple[str, ...]:
    """The keys of this object that are given more than once."""
    return found.names if isinstance(found, _Repeating) else ()


def field_twice(found: object) -> str | None:
    """The first key given more than once in this object or in those inside it, as a.b."""
    if not isinstance(found, Mapping):
        return None
    for name in names_twice(found):
        return name
    inner = ((name, field_twice(value)) for name, value in found.items())
    return next((f"{name}.{field}" for name, field in inner if field is not None), None)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeating, keys = _Repeating(found), [key for key, _ in pairs]
    repeating.names = tuple(key for key in found if keys.count(key) > 1)
    return repeating
