"""What a private run may say of itself: how much is spent, against whom, and what is not covered."""

import math
from typing import TYPE_CHECKING, Any

from ...supernet.axes import layout
from ...supernet.weights import size_of
from .config import PrivacyConfig, PrivacyPlan, SecureConfig
from .rounds import PrivateRounds

if TYPE_CHECKING:
    from ..config import RunConfig

ADJACENCY = (
    "zero-out: the same devices, one of them with no change in any round of the run; double the "
    "noise multiplier for one device's data in place of another's"
)
NOT_COVERED = (
    "profiles: examples, speeds, memory, class names, label counts where shared",
    "that a device takes part, when it replies, and whether its update was refused",
    "each round's loss, steps and multiply-accumulates, per device to the server, summed in the log",
    "hashes of updates in the ledger",
    "what is measured after training: norm statistics, accuracy, activation ranges, verification",
    "other runs over the same data: their epsilons add up",
)
"""What devices send beside their updates, in the clear and without noise."""
HOPELESS = 10.0
"""Noise of so many longest steps leaves nothing to learn from (docs/privacy.md, measured)."""


def statement(rounds: PrivateRounds) -> dict[str, Any]:
    """What the run's rounds so far have spent."""
    noise = rounds.plan.accountant.noise_multiplier
    return _said(rounds.config, rounds.secure, noise, rounds.spent) | {"epsilon": rounds.epsilon}


def promise(run: "RunConfig", config: PrivacyConfig) -> dict[str, Any]:
    """What a run will spend, and how large its noise is; UsageError when that is too much.

    `noise_to_step` is the L2 norm of one round's noise over that of the longest step which clipping
    lets through, with `clients` devices that all train the largest subnet; with `devices_needed` it
    is 1. `verdict` says in words what that means.
    """
    plan = config.plan(run.round.rounds, run.secure)
    clients = max(run.round.min_clients, sum(run.simulation.clients.values()))
    values = size_of({name: t.shape for name, t in layout(run.build_space()).items()})
    ratio = _noise_to_step(config, plan, values, clients)
    # The noise falls with the devices, or where each adds its own with their root.
    needed = math.ceil(clients * (ratio**2 if config.mode == "local" else ratio))
    return (
        {"verdict": _verdict(ratio, clients, needed)}
        | _said(config, run.secure, plan.accountant.noise_multiplier, run.round.rounds)
        | {
            "epsilon": plan.epsilon,
            "most_rounds": plan.accountant.most_rounds(config.epsilon),
            "clients": clients,
            "noise_to_step": ratio,
            "devices_needed": needed,
        }
    )


def line(said: dict[str, Any]) -> str:
    """One line of it for a terminal."""
    return (
        f"(ε = {said['epsilon']:.3g}, δ = {said['delta']:g}) after {said['rounds']} rounds, "
        f"{said['mechanism']}"
    )


def _said(
    config: PrivacyConfig, secure: SecureConfig | None, noise: float, rounds: int
) -> dict[str, Any]:
    return {
        "epsilon": 0.0,
        "delta": config.delta,
        "rounds": rounds,
        "mechanism": _mechanism(config, secure),
        "noise_multiplier": noise,
        "clip": config.clip,
        "adjacency": ADJACENCY,
        "not_covered": list(NOT_COVERED),
    }


def _noise_to_step(config: PrivacyConfig, plan: PrivacyPlan, values: int, clients: int) -> float:
    alone = plan.sum_multiplier * math.sqrt(values)
    return alone / (math.sqrt(clients * plan.sharers) if config.mode == "local" else clients)


def _verdict(ratio: float, clients: int, needed: int) -> str:
    noise = f"with {clients:,} devices the noise is {ratio:.2g} times the longest step"
    if ratio <= 1:
        return f"{noise}: this run can learn"
    future = "learn nothing" if ratio > HOPELESS else "learn little"
    return f"{noise}: this run will {future}; about {needed:,} devices are needed"


def _mechanism(config: PrivacyConfig, secure: SecureConfig | None) -> str:
    if config.mode == "local" and secure is not None:
        return (
            f"Gaussian noise by each device, a share of 1 in {secure.least_cover}, on updates of which "
            "an honest server sees secure sums alone: also against it"
        )
    if config.mode == "local":
        return "Gaussian noise by each device on its own update: also against an honest server"
    seen = "secure sum" if secure is not None else "sum"
    return (
        f"Gaussian noise by the server on the {seen} of updates, which it sees: against all others"
    )
