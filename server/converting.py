"""What converters make of several models, each in one call or several."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..specialize.fork_server import Call, ForkServer
from ..supernet.errors import ExportError


def converted(
    converters: ForkServer,
    asked: Mapping[str, Sequence[Call]],
    told: Callable[[str, int], None],
) -> dict[str, list[Any] | ExportError]:
    """By name, the results of the calls in order; the first error where one failed.

    `told` hears of each name whose last call is through, and how many there are by then.
    """
    calls = {f"{n} {name}": (name, c) for name, mine in asked.items() for n, c in enumerate(mine)}
    waiting = Counter(name for name, _ in calls.values())
    done = 0

    def through(key: str) -> None:
        nonlocal done
        name = calls[key][0]
        waiting[name] -= 1
        if not waiting[name]:
            done += 1
            told(name, done)

    results: dict[str, list[Any]] = {}
    for key, result in converters.run({k: call for k, (_, call) in calls.items()}, through).items():
        results.setdefault(calls[key][0], []).append(result)
    return {
        name: next((part for part in parts if isinstance(part, ExportError)), parts)
        for name, parts in results.items()
    }
