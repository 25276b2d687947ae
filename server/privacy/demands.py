"""What a private run may not do: settings by which one device's data reach others beside its update."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...supernet.errors import UsageError
from ..samplers.catalogue import FROM_OUTCOMES, WEIGHING
from .config import PrivacyConfig

if TYPE_CHECKING:
    from ..config import RunConfig


def check(run: "RunConfig", privacy: PrivacyConfig) -> None:
    """UsageError names the first setting that would break the promise, or exceed the budget."""
    for wrong, message in (*_merging(run), *_choosing(run), *_rounds(run), *_about(run, privacy)):
        if wrong:
            raise UsageError(message)
    privacy.check_clients(max(run.round.min_clients, sum(run.simulation.clients.values())))
    privacy.plan(run.round.rounds, run.secure)


def _merging(run: "RunConfig") -> Iterator[tuple[bool, str]]:
    """Each device moves the sum by at most the bound, and by nothing else."""
    found = run.aggregation
    yield (
        found.rule != "mean",
        f"aggregation.rule = {found.rule} with [privacy]: how far one device moves its result is not "
        "bounded; use rule = mean, which is then a private one",
    )
    yield (
        found.clip is not None,
        f"aggregation.clip = {found.clip} with [privacy]: a bound that follows the fleet's updates "
        "lets one device move the others'; leave it out, privacy.clip bounds each update",
    )
    yield (
        found.weights != "uniform",
        f"aggregation.weights = {found.weights} with [privacy]: a device's number of examples, or "
        "its labels, would decide how much the others count; use weights = uniform",
    )
    yield (
        found.size_power != 0,
        f"aggregation.size_power = {found.size_power} with [privacy]: updates count 1 each; leave it "
        "at 0",
    )


def _choosing(run: "RunConfig") -> Iterator[tuple[bool, str]]:
    """Who trains what follows from nothing that devices send about their data."""
    kind, strikes = run.sampler.kind, run.reputation.strikes
    yield (
        kind in FROM_OUTCOMES,
        f"sampler.kind = {kind} with [privacy]: it chooses subnets by the size of updates, before "
        "noise; use another method, such as growing or tiers",
    )
    yield (
        kind in WEIGHING,
        f"sampler.kind = {kind} with [privacy]: it gives updates different weights, and they count 1 "
        "each; use another method, such as growing or sandwich",
    )
    yield (
        strikes != 0,
        f"reputation.strikes = {strikes} with [privacy]: what is wrong with a device's update "
        "would say who takes part later; use strikes = 0",
    )


def _rounds(run: "RunConfig") -> Iterator[tuple[bool, str]]:
    """Every device is asked in every round, and what counts does not hang on who is fast."""
    found = run.round
    yield (
        found.mode != "sync",
        f"round.mode = {found.mode} with [privacy]: how often a device counts then follows from its "
        "speed, which the accounting does not know; use mode = sync",
    )
    for name in ("clients", "enough_replies"):
        yield (
            getattr(found, name) is not None,
            f"round.{name} = {getattr(found, name)} with [privacy]: the accounting is that of rounds "
            "which ask and await all devices; leave it out",
        )
    yield (
        bool(run.share.preset or run.share.rules),
        "share with [privacy]: not done yet; leave it out",
    )


def _about(run: "RunConfig", privacy: PrivacyConfig) -> Iterator[tuple[bool, str]]:
    yield (
        privacy.rate < 1,
        f"privacy.rate = {privacy.rate}: drawing devices protects them only where nobody sees who was "
        "drawn, and a run tells that: its ledger and log name who was asked, and rounds of too few "
        "replies are abandoned. Not done yet; use rate = 1",
    )
    yield (
        privacy.mode == "local" and run.codec is not None,
        "codec with privacy.mode = local: noise cannot be compressed, and the strongest values of a "
        "noised update are the noise's; leave codec out, or use mode = central",
    )
    yield (
        privacy.least_cover > run.round.min_clients,
        f"privacy.least_cover = {privacy.least_cover} with round.min_clients = "
        f"{run.round.min_clients}: a round of so few devices would train nothing; wait for at least "
        f"{privacy.least_cover} devices",
    )
