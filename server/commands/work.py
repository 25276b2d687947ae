"""Commands that do something to a run: train, evaluate, specialize, finish."""

from pathlib import Path
from typing import Annotated

import typer

from ...supernet.errors import UsageError
from .options import (
    DEFAULT_CONFIG,
    DEFAULT_STATE,
    Branch,
    Config,
    Json,
    Seed,
    State,
    ThenEvaluate,
    ThenSpecialize,
    config_of,
    put,
    shown,
)


def run(
    config: Config = DEFAULT_CONFIG,
    state: State = DEFAULT_STATE,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = False,
    seed: Seed = None,
    then_specialize: ThenSpecialize = False,
    then_evaluate: ThenEvaluate = False,
    as_json: Json = False,
) -> None:
    """Train the supernet on the devices that have joined the server."""
    from ..operate import follow_job, outcome, train_job

    after = {"then_specialize": then_specialize, "then_evaluate": then_evaluate}
    job = train_job(state, config_of(config, seed), resume=resume, **after)
    found = shown(lambda show: follow_job(state, job, show), as_json)
    put(outcome(job, found), as_json)


def specialize(
    config: Config = DEFAULT_CONFIG,
    state: State = DEFAULT_STATE,
    branch: Branch = None,
    fleet: Annotated[
        Path | None, typer.Option(help="Devices with budgets of their own (JSON; docs/fleet.md).")
    ] = None,
    artifacts: Annotated[
        int, typer.Option(min=1, max=4096, help="--fleet: share at most so many artifacts.")
    ] = 64,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="--fleet: say who gets what, export nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search, export, verify and publish the best model for each device class, or for a fleet."""
    from ..operate import follow_job, results, specialize_job

    if fleet is not None:
        from ..fleet_command import FleetOptions, specialize_fleet
        from ..fleet_report import as_lines

        options = FleetOptions(fleet, artifacts, plan_only, branch)
        loaded = config_of(config)
        report = shown(lambda show: specialize_fleet(state, loaded, options, show), as_json)
        for part in [report] if as_json else as_lines(report):
            put(part, as_json)
        return
    if plan_only:
        raise UsageError("--plan-only goes with --fleet FILE; docs/fleet.md says what it holds")
    job = specialize_job(state, config_of(config), branch)
    shown(lambda show: follow_job(state, job, show), as_json)
    put(results(job), as_json)


def evaluate(
    config: Config = DEFAULT_CONFIG,
    state: State = DEFAULT_STATE,
    branch: Branch = None,
    as_json: Json = False,
) -> None:
    """Search the best subnet for each device class and measure it on the devices; export nothing."""
    from ..operate import evaluate_job, follow_job, outcome

    job = evaluate_job(state, config_of(config), branch)
    found = shown(lambda show: follow_job(state, job, show), as_json)
    put(outcome(job, found), as_json)


def simulate(
    config: Config = DEFAULT_CONFIG,
    state: State = DEFAULT_STATE,
    backend: Annotated[str, typer.Option(help="local (this process) or ray.")] = "local",
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = False,
    seed: Seed = None,
    then_specialize: ThenSpecialize = False,
    then_evaluate: ThenEvaluate = False,
    as_json: Json = False,
) -> None:
    """Train without a network: the same strategy and client code, simulated devices."""
    from ..operate import outcome, simulate_job, train_job

    after = {"then_specialize": then_specialize, "then_evaluate": then_evaluate}
    job = train_job(state, config_of(config, seed), resume=resume, **after)
    found = shown(lambda show: simulate_job(job, backend, show), as_json)
    put(outcome(job, found), as_json)


def finish(
    device_class: Annotated[str, typer.Option("--class", help="Whose model is too weak.")],
    config: Config = DEFAULT_CONFIG,
    state: State = DEFAULT_STATE,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many rounds more (5).")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with one that was cut off.")] = False,
    simulated: Annotated[
        str | None, typer.Option("--simulate", help="Simulated devices: local or ray.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train one class's subnet some rounds further; publish it where it is better."""
    from ..operate import finish_job, follow_job, outcome, simulate_job

    job = finish_job(state, config_of(config), device_class, rounds=rounds, resume=resume)
    if simulated is None:
        found = shown(lambda show: follow_job(state, job, show), as_json)
    else:
        backend = simulated
        found = shown(lambda show: simulate_job(job, backend, show), as_json)
    put(outcome(job, found), as_json)
