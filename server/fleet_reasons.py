"""Why a device of a fleet is not served: which field, what is wrong, and the way out."""

from ..specialize.fleet.demand import Demand
from ..specialize.fleet.plan import Refused
from .fleet_file import Rejected


def reason_of(refused: Refused) -> Rejected:
    """A device that no candidate fits."""
    device, miss = refused.demand.device, refused.miss
    if miss is None:
        return Rejected(device, "runtime", f"there is no candidate as {refused.demand.kind}")
    if miss.lacking:
        names = [name.partition(":")[2] for name in miss.lacking]
        return Rejected(
            device,
            "lacks",
            f"every subnet of the space needs {', '.join(names)}, which its runtime lacks; give it "
            "another runtime, or train a space without",
        )
    nearest = f"the nearest subnet has {', '.join(miss.broken)} (overshoot {miss.overshoot:.3g})"
    field = f"budget.{miss.broken[0].split()[0]}"
    if miss.contradict:
        return Rejected(
            device,
            "budget",
            "its bounds contradict each other: each alone is kept by some subnet, together by none; "
            f"{nearest}. Raise one of them",
        )
    return Rejected(device, field, f"no subnet fits: {nearest}. Raise the bound")


def unmade_reason(refused: Refused, name: str, failed: str) -> Rejected:
    """A device whose artifact could not be made, where none of the others fits it."""
    return Rejected(
        refused.demand.device,
        "artifacts",
        f"its artifact {name} could not be made ({failed}; see class_failed in the event log), and "
        "none of the others fits; put that right and plan again",
    )


def too_large_reason(refused: Refused, name: str, size_bytes: int, most_bytes: float) -> Rejected:
    """A device whose artifact's file is larger than was reckoned with, where none of the others fits it."""
    return Rejected(
        refused.demand.device,
        "artifacts",
        f"its artifact {name} has a file of {size_bytes:,} bytes, too large for it where at most "
        f"{most_bytes:,.0f} were reckoned with, and none of the others fits; plan again: plans "
        "reckon with such files from now on",
    )


def unserved_reason(demand: Demand, most: int) -> Rejected:
    """A device that something fits, but none of as many artifacts as were allowed."""
    return Rejected(
        demand.device,
        "artifacts",
        f"none of the {most} artifacts fits it; allow more (--artifacts)",
    )
