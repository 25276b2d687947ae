"""What does not go with groups: all that needs the updates one by one, or in order."""

from typing import TYPE_CHECKING

from ...supernet.errors import UsageError

if TYPE_CHECKING:
    from ..config import RunConfig

WEIGHTS = ("examples", "uniform", "disco")
"""Weights that are known before an update arrives."""


def check(run: "RunConfig") -> None:
    """UsageError names the first setting that has no partial sums."""
    found, given = run.aggregation, f"with round.groups = {run.round.groups}"
    if found.rule != "mean":
        raise UsageError(
            f"aggregation.rule = {found.rule} {given}: it must see all updates together, and has no "
            "partial sums; use rule = mean, or leave groups out"
        )
    if found.clip is not None:
        raise UsageError(
            f"aggregation.clip = {found.clip} {given}: the first round's bound is known when all "
            "updates are in; leave one of them out"
        )
    if found.weights not in WEIGHTS:
        raise UsageError(
            f"aggregation.weights = {found.weights} {given}: they are not known when an update "
            f"arrives; allowed: {', '.join(WEIGHTS)}"
        )
    if run.privacy is not None:
        raise UsageError(
            f"[privacy] {given}: a private round's sum is made in one place, with its noise; leave "
            "groups out"
        )
    if run.secure is not None:
        raise UsageError(
            f"[secure] {given}: masked updates are added up by the protocol's own sum; leave groups out"
        )
    if run.downlink is not None:
        raise UsageError(
            f"[downlink] {given}: groups know what a device was sent from the weights alone; leave one "
            "of them out"
        )
    if run.branches is not None:
        raise UsageError(
            f"[branches] {given}: each branch merges its own devices' updates in the server; leave "
            "groups out"
        )
