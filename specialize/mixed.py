"""Which layers get 4 bits, 8 or none: what costs least accuracy for the bytes that must go.

Every layer's cost at a width is measured once, the others as they are; costs add up, which is the
usual assumption (HAWQ, Dong et al. 2019; AdaQuant, Hubara et al. 2021). Under it the choice is a
knapsack, whose fronts are exact: layer after layer, of all sums of bytes and cost those are kept
that no other beats in both. Bytes are whole, which bounds the fronts; no solver is needed. 90 layers of a network
of ImageNet size take some seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..supernet.errors import UsageError


@dataclass(frozen=True, slots=True)
class Option:
    """A layer's weights at one width: bytes in the file, and what the network loses by it alone."""

    bits: int
    size_bytes: int
    cost: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A width for each layer, in order, and what they come to."""

    bits: tuple[int, ...]
    size_bytes: int
    cost: float

    def layers(self, usual: int) -> Mapping[int, int]:
        """Those that differ from the usual width: a scheme's `layers`."""
        return {place: bits for place, bits in enumerate(self.bits) if bits != usual}


def measured_options(
    weights: Sequence[int], widths: Sequence[int], cost: Callable[[Mapping[int, int]], float]
) -> list[list[Option]]:
    """Each layer's options, of layers with so many weights.

    `cost` takes place → width of the layers that are rounded and gives the network's loss then; it
    is called once for each layer and width, and once with none.
    """
    usual = cost({})
    return [
        [Option(bits, -(-count * bits // 8), cost({place: bits}) - usual) for bits in widths]
        for place, count in enumerate(weights)
    ]


def cheapest(options: Sequence[Sequence[Option]], budget_bytes: int) -> Plan:
    """The plan of least cost within the budget; between equal costs, of fewer bytes.

    `options` are each layer's. UsageError when even the smallest plan is too large, saying by how
    much.
    """
    if not options or not all(options):
        raise UsageError("mixed precision: at least one layer, and one width for each, is needed")
    least = sum(min(each.size_bytes for each in layer) for layer in options)
    if least > budget_bytes:
        raise UsageError(
            f"mixed precision: the weights take at least {least} bytes; the budget is {budget_bytes}. "
            "Raise the budget or choose a smaller subnet"
        )
    # What the layers still to come take at least: a sum that leaves less room leads nowhere.
    rest = least
    front = [Plan((), 0, 0.0)]
    for layer in options:
        rest -= min(each.size_bytes for each in layer)
        grown = [
            Plan((*plan.bits, o.bits), plan.size_bytes + o.size_bytes, plan.cost + o.cost)
            for plan in front
            for o in layer
            if plan.size_bytes + o.size_bytes + rest <= budget_bytes
        ]
        front = _undominated(grown)
    return min(front, key=lambda plan: (plan.cost, plan.size_bytes))


def _undominated(plans: Sequence[Plan]) -> list[Plan]:
    kept: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.size_bytes, plan.cost)):
        if not kept or plan.cost < kept[-1].cost:
            kept.append(plan)
    return kept
