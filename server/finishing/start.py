"""What a finishing begins with: a run's newest supernet, and the subnet that a class was given of it.

Written into the finishing's folder before anything is trained, as a checkpoint whose notes say what it is
of: a finishing that is resumed measures against these weights, whatever the run has become meanwhile.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ...protos.manifest import Finished, Manifest
from ...supernet.errors import UsageError
from ...supernet.space import Space, plain
from ...supernet.weights import digest
from ..checkpoint import CHECKPOINTS, Checkpoint, CheckpointStore
from ..config import RunConfig
from ..registry import DATABASE, Registry

FINISHED, START = "finished", "start"
"""A run's folder of finishings, one for each class, and in it that of what one began with."""
NOTES = "finishing"
OUTCOME = "finished.json"
"""A finishing's file of what it came to: it is over where there is one."""
DEFAULT_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Start:
    """A class's subnet, the checkpoint that it is finished from, and for how many rounds.

    `round` and `supernet_sha256` are of the run's checkpoint; `version` is that of the model which
    the class has of it.
    """

    run: str
    device_class: str
    arch: Mapping[str, int | float]
    round: int
    supernet_sha256: str
    version: int
    rounds: int

    def led_to(self, told: Finished) -> bool:
        """Whether a manifest says that its model was finished from here, for as many rounds."""
        said = (told.run, told.round, told.supernet_sha256, told.version, told.rounds)
        return said == (self.run, self.round, self.supernet_sha256, self.version, self.rounds)


def finishing_folder(run: Path, device_class: str) -> Path:
    """Where a class's finishing keeps its checkpoints, events, ledger and model."""
    return run / FINISHED / device_class


def refuse(config: RunConfig, device_class: str) -> None:
    """UsageError for a class that the configuration lacks, or a run that cannot be finished."""
    if device_class not in config.classes:
        near = difflib.get_close_matches(device_class, list(config.classes), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"--class {device_class!r}: the configuration has {', '.join(config.classes)}{hint}"
        )
    for table, given in (("privacy", config.privacy), ("branches", config.branches)):
        if given is not None:
            raise UsageError(
                f"a run with [{table}] cannot be finished: "
                + (
                    "more rounds would tell more of the devices' data than the run promised"
                    if table == "privacy"
                    else "finishing knows no branches yet"
                )
            )


def find_start(
    folder: Path, registry: Path, config: RunConfig, device_class: str, rounds: int
) -> tuple[Start, Checkpoint]:
    """What a class's finishing would begin with, from a run's folder and the registry.

    UsageError where the run is not trained or of another space, the class was never specialized, or
    not from the newest checkpoint.
    """
    refuse(config, device_class)
    found, space = CheckpointStore(folder / CHECKPOINTS).latest(), config.build_space()
    if found is None:
        raise UsageError(f"run folder {folder} holds no trained supernet; fedofa run first")
    if found.noted("fingerprint").get("space") != plain(space.to_dict()):
        raise UsageError(
            f"checkpoint of round {found.round} in {folder} is of another space than the "
            "configuration's; restore the configuration's [space]"
        )
    config.share.plan(space).in_round(found.round + 1).refuse_export()
    manifest = _published(registry, config.name, device_class)
    _check(manifest, space, found, device_class)
    start = Start(
        run=config.name,
        device_class=device_class,
        arch=manifest.arch,
        round=found.round,
        supernet_sha256=manifest.supernet_sha256,
        version=manifest.version,
        rounds=rounds,
    )
    return start, found


def _published(registry: Path, run: str, device_class: str) -> Manifest:
    """The newest model that the class has of this run."""
    model = f"{run}.{device_class}"
    if (registry / DATABASE).exists():
        with Registry(registry) as known:
            if versions := known.versions(model):
                return known.manifest(model, versions[-1])
    raise UsageError(
        f"--class {device_class!r}: no model {model!r} was published, so there is no subnet to "
        "finish; fedofa specialize first"
    )


def _check(manifest: Manifest, space: Space, found: Checkpoint, device_class: str) -> None:
    name = f"{manifest.model} version {manifest.version}"
    if manifest.space != plain(space.to_dict()):
        raise UsageError(
            f"{name} is of another space than the configuration's; fedofa specialize first"
        )
    if manifest.supernet_sha256 == digest(found.weights):
        return
    if manifest.finished is not None:
        raise UsageError(
            f"{name} is finished already, from round {manifest.finished.round} for "
            f"{manifest.finished.rounds} rounds; to finish {device_class} anew, fedofa specialize "
            "first"
        )
    raise UsageError(
        f"{name} was made from other weights than those of round {found.round}, the newest "
        "checkpoint; fedofa specialize first, so that both are compared with the same"
    )


def write_start(folder: Path, start: Start, found: Checkpoint) -> None:
    """Write down, in a finishing's folder, what it begins with."""
    notes = {**found.notes, NOTES: {**asdict(start), "arch": dict(start.arch)}}
    whole = Checkpoint(found.round, found.weights, {}, {}, notes)
    CheckpointStore(folder / START, keep=1).write(whole)


def read_start(folder: Path) -> tuple[Start, Checkpoint] | None:
    """What a finishing began with; None where none has begun.

    ArtifactError where it is damaged.
    """
    found = CheckpointStore(folder / START).latest()
    if found is None:
        return None
    noted = found.noted(NOTES)
    return Start(**{field.name: noted[field.name] for field in fields(Start)}), found


def check_current(folder: Path, registry: Path, start: Start) -> None:
    """UsageError where the class has a newer model by now than the one that is being finished.

    What is finished would take its place for devices, though it was never compared with it.
    """
    newest = _published(registry, start.run, start.device_class)
    if newest.version == start.version:
        return
    told = newest.finished
    own = told is not None and (told.supernet_sha256, told.version) == (
        start.supernet_sha256,
        start.version,
    )
    what = "it was finished" if own else "the class was specialized anew"
    raise UsageError(
        f"{newest.model} is at version {newest.version}, and {folder} finishes version "
        f"{start.version}: {what} meanwhile. Move the folder away; nothing was published. Then "
        "fedofa finish begins with the newest version"
        + (", after fedofa specialize" if told is not None else "")
    )


def check_folder(folder: Path, *, resume: bool, rounds: int | None) -> None:
    """UsageError where a finishing would overwrite another, or there is nothing to resume."""
    begun, trained = read_start(folder), CheckpointStore(folder / CHECKPOINTS).rounds()
    if (folder / OUTCOME).exists():
        raise UsageError(
            f"{folder} holds a finishing that is over; see {OUTCOME} there. Move the folder away to "
            "finish the class anew"
        )
    if not resume and trained:
        raise UsageError(
            f"{folder} already holds {trained[-1]} rounds of a finishing: go on with --resume, or "
            "move the folder away"
        )
    if not resume:
        return
    if begun is None:
        raise UsageError(f"{folder} holds no finishing to resume; leave --resume out")
    if rounds is not None and rounds != begun[0].rounds:
        raise UsageError(
            f"--rounds {rounds}: this finishing was begun for {begun[0].rounds}; leave --rounds out"
        )
