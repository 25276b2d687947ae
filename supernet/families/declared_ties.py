"""Which layers' output channels must be the same ones, and which cannot vary at all.

Each convolution or linear layer produces channels of its own. What the network does with them ties
them to others (a residual addition, a depthwise convolution, a block that may be left out) or pins
them to their full number (the network's output, an operation that is not understood). Every tie
and pin keeps its reason, for the message to whoever declares the impossible.
"""

from collections import deque
from math import lcm

from ..structure import Stretch

Dim = tuple[Stretch, ...]
"""One dimension of a tensor; a stretch's axis is the layer that produces the channels."""
Dims = tuple[Dim, ...]


def fixed(size: int) -> Dim:
    """A dimension that does not vary."""
    return (Stretch(None, size),)


def size_of(dim: Dim) -> int:
    """Full size of a dimension."""
    return sum(stretch.positions for stretch in dim)


def repeated(dim: Dim, times: int) -> Dim:
    """Each position `times` times, one after another."""
    return tuple(Stretch(s.axis, s.channels, s.repeat * times) for s in dim)


class Ties:
    """Union-find over producing layers, with reasons."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}
        self._reasons: dict[str, list[tuple[str, str]]] = {}
        self._pinned: dict[str, str] = {}
        self._units: dict[str, int] = {}
        self._made_of: dict[str, Dim] = {}
        self.channels: dict[str, int] = {}

    @property
    def producers(self) -> list[str]:
        """Every layer that produces channels of its own, in order of execution."""
        return [layer for layer in self._above if self.root(layer) not in self._made_of]

    def produce(self, layer: str, channels: int) -> Dim:
        """The output channels of a layer that is tied to nothing yet."""
        self._above.setdefault(layer, layer)
        self._reasons.setdefault(layer, [])
        self.channels[layer] = channels
        return (Stretch(layer, channels),)

    def resolved(self, dim: Dim) -> Dim:
        """The same dimension, each axis named by the first layer that produces it."""
        found: list[Stretch] = []
        for stretch in dim:
            root = self.root(stretch.axis) if stretch.axis else None
            if root in self._made_of:
                found += repeated(self.resolved(self._made_of[root]), stretch.repeat)
            else:
                found.append(Stretch(root, stretch.channels, stretch.repeat))
        return tuple(found)

    def tie(self, first: Dim, second: Dim, why: str) -> None:
        """Both dimensions are one and the same from now on."""
        first, second = self.resolved(first), self.resolved(second)
        pairs = list(zip(first, second, strict=False))
        alike = len(first) == len(second) and all(
            (a.channels, a.repeat) == (b.channels, b.repeat) for a, b in pairs
        )
        if alike:
            for a, b in pairs:
                if a.axis is None or b.axis is None:
                    self.pin((a, b), f"{why}, and not both can vary")
                else:
                    self._join(a.axis, b.axis, why)
        elif self._free(first):
            self._made_of[str(first[0].axis)] = second
        elif self._free(second):
            self._made_of[str(second[0].axis)] = first
        else:
            self.pin((*first, *second), f"{why}, and they are made up differently")

    def pin(self, dim: Dim, why: str) -> None:
        """These channels cannot vary."""
        for stretch in self.resolved(dim):
            if stretch.axis is not None:
                self._pinned.setdefault(stretch.axis, why)

    def group(self, dim: Dim, size: int, why: str) -> None:
        """These channels vary by whole groups of `size`."""
        dim = self.resolved(dim)
        if len(dim) == 1 and dim[0].repeat == 1 and dim[0].axis is not None:
            layer = dim[0].axis
            self._units[layer] = lcm(size, self._units.get(layer, 1))
        else:
            self.pin(dim, why)

    def root(self, layer: str) -> str:
        """The layer that stands for all those tied to this one: the first of them."""
        while self._above[layer] != layer:
            layer = self._above[layer]
        return layer

    def members(self, layer: str) -> list[str]:
        """All layers tied to this one, itself included, in order of execution."""
        return [other for other in self._above if self.root(other) == self.root(layer)]

    def pinned(self, layer: str) -> str | None:
        """Why these channels cannot vary; None if they can."""
        for other in self.members(layer):
            if other in self._pinned:
                return "; ".join([*self.chain(layer, other), f"{other}: {self._pinned[other]}"])
        return None

    def unit(self, layer: str) -> int:
        """By how many channels the size varies."""
        return lcm(*(self._units.get(other, 1) for other in self.members(layer)))

    def chain(self, first: str, last: str) -> list[str]:
        """The reasons why two layers are tied, one after another."""
        ways = {first: list[str]()}
        queue = deque([first])
        while queue:
            here = queue.popleft()
            for other, why in self._reasons[here]:
                if other not in ways:
                    ways[other] = [*ways[here], why]
                    queue.append(other)
        return list(dict.fromkeys(ways[last]))

    def _free(self, dim: Dim) -> bool:
        """Whether a dimension is one layer's output and may become what another is made of."""
        if len(dim) != 1 or dim[0].repeat > 1 or dim[0].axis is None:
            return False
        members = self.members(dim[0].axis)
        return not any(m in self._pinned or m in self._units for m in members)

    def _join(self, a: str, b: str, why: str) -> None:
        if a == b:
            return
        self._reasons[a].append((b, why))
        self._reasons[b].append((a, why))
        order = list(self._above)
        first, second = sorted((self.root(a), self.root(b)), key=order.index)
        self._above[second] = first
