"""What a run with secure sums may not do: all that needs to see single updates, or that nobody summed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...supernet.errors import UsageError
from ..samplers.catalogue import FROM_OUTCOMES, WEIGHING
from .config import SecureConfig

if TYPE_CHECKING:
    from ..config import RunConfig


def check(run: "RunConfig", secure: SecureConfig) -> None:
    """UsageError names the first setting that cannot work with sums alone."""
    for wrong, message in (*_merging(run), *_rounds(run, secure), *_privacy(run, secure)):
        if wrong:
            raise UsageError(message)
    clients = run.round.clients or max(run.round.min_clients, sum(run.simulation.clients.values()))
    secure.terms(max(clients, secure.least_devices), 1.0)


def _merging(run: "RunConfig") -> Iterator[tuple[bool, str]]:
    """All that looks at an update, or weighs it."""
    found, kind = run.aggregation, run.sampler.kind
    yield (
        found.rule != "mean",
        f"aggregation.rule = {found.rule} with [secure]: it compares updates, of which the server sees "
        "the sum alone; use rule = mean",
    )
    yield (
        found.clip is not None,
        f"aggregation.clip = {found.clip} with [secure]: it measures each update; leave it out. "
        "secure.bound bounds each value, and privacy.clip the norm, on the devices",
    )
    yield (
        found.weights != "uniform",
        f"aggregation.weights = {found.weights} with [secure]: updates count 1 each, since with unequal "
        "weights a sum could be made to be one device's; use weights = uniform",
    )
    yield (
        found.size_power != 0,
        f"aggregation.size_power = {found.size_power} with [secure]: updates count 1 each; leave it at 0",
    )
    yield (
        kind in FROM_OUTCOMES,
        f"sampler.kind = {kind} with [secure]: it chooses subnets by the size of updates, which the "
        "server does not see; use another method, such as growing or tiers",
    )
    yield (
        kind in WEIGHING,
        f"sampler.kind = {kind} with [secure]: it gives updates different weights, and they count 1 "
        "each; use another method, such as growing or sandwich",
    )
    yield (
        run.codec is not None,
        "codec with [secure]: masked values look random and cannot be compressed; leave codec out",
    )
    yield (
        run.downlink is not None,
        "downlink with [secure]: the weights go along with a letter, as they are; leave downlink out",
    )
    yield (
        run.branches is not None,
        "[branches] with [secure]: devices of one branch would be summed among themselves, and a branch "
        "may be too small to hide anybody; leave one of them out",
    )


def _rounds(run: "RunConfig", secure: SecureConfig) -> Iterator[tuple[bool, str]]:
    """A sum is over devices that go through all four letters together, and over enough of them."""
    found, least = run.round, secure.least_devices
    yield (
        found.mode != "sync",
        f"round.mode = {found.mode} with [secure]: the devices of a sum must come together in a round; "
        "use mode = sync",
    )
    yield (
        found.enough_replies is not None,
        f"round.enough_replies = {found.enough_replies} with [secure]: whose masks are in the sum is "
        "settled before devices train, and each one that is left out costs every other one; leave it out",
    )
    for name in ("min_clients", "clients"):
        given = getattr(found, name)
        yield (
            given is not None and given < least,
            f"round.{name} = {given} with [secure]: a round of so few devices has no sum, "
            f"secure.least_cover = {secure.least_cover} and threshold = {secure.threshold} ask for at "
            f"least {least}; raise it, or lower them",
        )


def _privacy(run: "RunConfig", secure: SecureConfig) -> Iterator[tuple[bool, str]]:
    """Noise goes together with sums, but for what is measured on single updates."""
    privacy = run.privacy
    if privacy is None:
        return
    yield (
        privacy.adaptive is not None,
        "privacy.adaptive with [secure]: the bound follows from how many updates are below it, which "
        "the server does not see; leave it out",
    )
    yield (
        secure.bound is not None,
        f"secure.bound = {secure.bound} with [privacy]: privacy.clip says what a value can be; leave "
        "secure.bound out",
    )
