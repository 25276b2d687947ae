"""The fields of a declaration as JSON or TOML give them, checked and made hashable.

A declaration may come from another machine, so nothing is taken for granted about its types.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from ..errors import UsageError
from ..space import Value
from .declared_choices import Choice
from .declared_graph import WHERE

Json = bool | int | float | str | None | tuple["Json", ...]
Arguments = tuple[tuple[str, Json], ...]
Depths = tuple[tuple[str, tuple[str, ...]], ...]


def arguments(raw: object) -> Arguments:
    """Keyword arguments: texts, numbers, truth values and lists of them."""
    table = _table("arguments", raw)
    return tuple((name, _frozen(f"arguments.{name}", table[name])) for name in sorted(table))


def choices(field: str, raw: object) -> tuple[Choice, ...]:
    """Layer or pattern → options, or a table of `options` and the `gene` that they share."""
    found = []
    for layers, line in sorted(_table(field, raw).items()):
        where, gene, options = f"{field}.{layers}", "", line
        if isinstance(line, Mapping):
            if set(line) != {"options", "gene"} or not isinstance(line["gene"], str):
                raise UsageError(
                    f"{WHERE}: {where} = {dict(line)}; expected a list of sizes, or "
                    '{ options = [...], gene = "name" }'
                )
            options, gene = line["options"], line["gene"]
        found.append(Choice(layers, _numbers(where, options), gene))
    return tuple(found)


def depths(raw: object) -> Depths:
    """Gene → the blocks that it adds, in this order."""
    table = _table("depths", raw)
    for name, blocks in table.items():
        if not _is_list(blocks) or not blocks or not all(isinstance(b, str) for b in blocks):
            raise UsageError(f"{WHERE}: depths.{name} = {blocks!r}; a list of blocks expected")
    found = tuple((name, tuple(table[name])) for name in sorted(table))
    blocks = [block for _, of in found for block in of]
    for at, block in enumerate(blocks):
        for other in (*blocks[:at], *blocks[at + 1 :]):
            if block == other or block.startswith(f"{other}."):
                raise UsageError(
                    f"{WHERE}: depths: {block} and {other}: a block may be left out in one way only"
                )
    return found


def sizes(field: str, raw: object, *, ascending: bool = False) -> tuple[int, ...]:
    """Whole numbers of at least 1; `ascending` ones may be none at all."""
    if (
        not _is_list(raw)
        or not (raw or ascending)
        or any(type(size) is not int or size < 1 for size in raw)
    ):
        raise UsageError(f"{WHERE}: {field} = {raw!r}; a list of whole numbers above 0 expected")
    found = tuple(raw)
    if ascending and list(found) != sorted(set(found)):
        raise UsageError(f"{WHERE}: {field} = {list(found)}; ascending, without repeats")
    return found


def thawed(arguments: Arguments) -> dict[str, Any]:
    """Arguments as a function takes them."""
    return {name: _thawed(value) for name, value in arguments}


def lines(chosen: Iterable[Choice]) -> dict[str, object]:
    """The form that `choices` reads."""
    return {
        choice.layers: {"options": list(choice.options), "gene": choice.gene}
        if choice.gene
        else list(choice.options)
        for choice in chosen
    }


def _thawed(value: Json) -> object:
    return [_thawed(one) for one in value] if isinstance(value, tuple) else value


def _frozen(where: str, value: object) -> Json:
    if isinstance(value, list | tuple):
        return tuple(_frozen(where, one) for one in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{WHERE}: {where} = {value}; a finite number expected")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(
        f"{WHERE}: {where} = {value!r}; texts, numbers, true, false and lists of them expected"
    )


def _numbers(where: str, raw: object) -> tuple[Value, ...]:
    if _is_list(raw) and raw:
        whole = all(type(one) is int for one in raw)
        if whole or all(type(one) in (int, float) and 0 < one <= 1 for one in raw):
            return tuple(one if whole else float(one) for one in raw)
    raise UsageError(
        f"{WHERE}: {where} = {raw!r}; a list of whole numbers, or of fractions above 0 and up to 1"
    )


def _table(field: str, raw: object) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise UsageError(f"{WHERE}: {field} = {raw!r}; a table expected")
    return raw


def _is_list(raw: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(raw, list | tuple)
