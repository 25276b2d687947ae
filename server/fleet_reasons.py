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


def unmade_reason(refused: Refused, name: str, failed: str | None) -> Rejected:
    """A device whose artifact did not come out as planned, where none of the others fits it.

    `failed`: why its artifact could not be made; None where its file is larger than predicted.
    """
    what = (
        f"could not be made ({failed}; see class_failed in the event log)"
        if failed is not None
        else "has a file that is larger than predicted, too large for it"
    )
    return Rejected(
        refused.demand.device,
        "artifacts",
        f"its artifact {name} {what}, and none of the others fits; plan again with more --artifacts",
    )


def unserved_reason(demand: Demand, most: int) -> Rejected:
    """A device that something fits, but none of as many artifacts as were allowed."""
    return Rejected(
        demand.device,
        "artifacts",
        f"none of the {most} artifacts fits it; allow more (--artifacts)",
    )
