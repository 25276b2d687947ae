"""Commands that look at what there is: plans, models, ledgers, reports."""

from pathlib import Path
from typing import Annotated

import typer

from ...supernet.errors import UsageError
from .options import DEFAULT_CONFIG, DEFAULT_STATE, Config, Json, State, config_of, put

PublicKeyFile = Annotated[
    Path | None, typer.Option("--key", help="Public key (PEM); else ledger.pub beside the ledger.")
]


def privacy(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """What a private run will spend, with which noise, and what it leaves open."""
    from ..privacy.statement import promise

    loaded = config_of(config)
    if loaded.privacy is None:
        raise UsageError(f"config {config} has no [privacy] table; see docs/privacy.md")
    put(promise(loaded, loaded.privacy), as_json)


def branches(
    config: Config = DEFAULT_CONFIG, state: State = DEFAULT_STATE, as_json: Json = False
) -> None:
    """How a run with branches divides its work: its coalitions, or its copies' configurations."""
    from ..branches.trained import explained
    from ..operate import run_folder

    loaded = config_of(config)
    put(explained(run_folder(state, loaded), loaded), as_json)


def models(
    state: State = DEFAULT_STATE,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What this device of a fleet gets by its own name."),
    ] = None,
    channel: Annotated[str, typer.Option(help="With --device: from which releases.")] = "stable",
    as_json: Json = False,
) -> None:
    """List what is published, or what one device of a fleet gets."""
    from ...protos.manifest import Manifest
    from .. import registry_plans
    from ..registry import Registry
    from ..serve import REGISTRY

    if device is not None:
        with Registry(state / REGISTRY) as registry:
            found = registry_plans.resolve(registry, device, channel)
        manifest = Manifest.from_json(found.manifest)
        row = {"device": device, "model": manifest.model, "version": manifest.version}
        told = {"device_class": found.device_class, "manifest_sha256": found.sha256}
        put({**row, **told}, as_json)
        return
    rows = [
        {
            "model": listed.model,
            "version": listed.version,
            "device_class": listed.device_class,
            "channels": list(listed.channels),
            "manifest_sha256": listed.manifest_sha256,
        }
        for listed in Registry(state / REGISTRY).listing()
    ]
    put(rows, as_json)


def verify(
    ledger: Annotated[Path, typer.Option(help="A run's ledger.jsonl, or the run's folder.")],
    key: PublicKeyFile = None,
    head: Annotated[
        str | None, typer.Option(help="A hash that the ledger must hold; shows that none was cut.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a run's ledger with its public key: exit code 1 and the first bad entry, or 0."""
    from ..ledger_report import told, verdict

    found = verdict(ledger, key, head)
    if as_json or found["ok"]:
        put(found if as_json else told(found), as_json)
    else:
        typer.echo(f"error: {found['error']}", err=True)
    if not found["ok"]:
        raise typer.Exit(1)


def contributions(
    ledger: Annotated[Path, typer.Option(help="A run's ledger.jsonl, or the run's folder.")],
    key: PublicKeyFile = None,
    as_json: Json = False,
) -> None:
    """What each device gave to a run, from its ledger, which is checked first."""
    from ..ledger_report import as_rows, by_device

    found = by_device(ledger, key)
    put(found if as_json else as_rows(found), as_json)


def report(
    run: Annotated[Path, typer.Option(help="A run's folder: STATE/runs/NAME.")],
    branch: Annotated[str | None, typer.Option(help="Of a run that has branches: one.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Judge best practices; exit code 1 if one is not met.")
    ] = False,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What fedofa-device run --labels --json printed."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What a run came to: models, audit, calibration, devices, cost, and each file's lineage."""
    from ..report import command

    found = command.report_of(run, branch, held_out or ())
    if not check:
        command.require_whole(found)
    if html is not None and found["broken"]:
        typer.echo(f"{html} was not written: links of the lineage are broken", err=True)
    elif html is not None:
        command.write_page(found, html)
        typer.echo(f"wrote {html}", err=as_json)
    if check:
        if as_json:
            put(found["practices"], as_json)
        else:
            command.show_practices(found)
        raise typer.Exit(1 if command.unmet(found) else 0)
    if as_json:
        put(found, as_json)
    elif html is None:
        command.show(found)
