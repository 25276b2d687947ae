"""Best practices that are about the run and its training. Advice is in each finding."""

from ..fingerprint import fingerprint
from ..ledger_chain import LEDGER
from ..run_record import RECORD
from .finding import Finding, Scene, finding

FEWEST_SEEDS = 3
NEEDED_PACKAGES = ("fedofa", "torch")


def configuration(scene: Scene) -> Finding:
    """The training's configuration, and that the specialization used the same."""
    trained, where = scene.facts.trained_by, f"{RECORD}: jobs.config"
    if trained is None:
        return Finding("not met", f"{RECORD} has no training that was done", "fedofa run --resume")
    mine = fingerprint(trained, scene.facts.space)
    theirs = fingerprint(scene.facts.config, scene.facts.space)
    return finding(
        [f"{key}: trained with another value" for key in mine if mine[key] != theirs.get(key)],
        where,
        "specialize with the configuration that the run was trained with",
    )


def software(scene: Scene) -> Finding:
    """Versions and processor of both jobs."""
    jobs = [job for job in (scene.facts.training, scene.facts.job) if job is not None]
    missing = [
        f"the {job.kind} job: no version of {name}"
        for job in jobs
        for name in NEEDED_PACKAGES
        if name not in job.environment.packages
    ]
    missing += [
        f"the {job.kind} job: no processor" for job in jobs if not job.environment.processor
    ]
    return finding(
        missing,
        f"{RECORD}: jobs.environment",
        "install packages with their metadata, and specialize again",
    )


def seeds(scene: Scene) -> Finding:
    """Runs of the same configuration with other seeds."""
    seeds = scene.facts.seeds
    told = f"runs of this configuration in the same folder: of seed {', '.join(map(str, seeds))}"
    return finding(
        [] if len(seeds) >= FEWEST_SEEDS else [told],
        told,
        f"write the configuration with {FEWEST_SEEDS} seeds or more, each with a name of its own, and "
        "run and specialize each file (fedofa specialize takes the seed of the file, so one that was "
        "given with fedofa run --seed goes with --specialize alone)",
    )


def data_cards(scene: Scene) -> Finding:
    """What each device that was asked told of its data."""
    facts = scene.facts
    given = [] if facts.book is None else [one.device for one in facts.book.contributions]
    missing = [
        f"device {name} told nothing of its data" for name in given if name not in facts.joined
    ]
    if facts.data_form is None:
        missing.append("shape, classes and normalization are not noted")
    return finding(
        missing,
        "event log: device_joined, data_form",
        "keep the event logs of all parts of the run; run --resume asks the devices again",
    )


def splits(scene: Scene) -> Finding:
    """Validation examples that devices keep apart."""
    cards = scene.facts.joined
    missing = [
        f"device {name}: how many validation examples it keeps apart is not noted"
        for name, card in cards.items()
        if card.get("validation_examples") is None
    ]
    if not any(card.get("validation_examples") for card in cards.values()):
        missing.append("no device keeps validation examples apart")
    return finding(
        missing,
        "event log: device_joined.examples, .validation_examples",
        "give data functions a validation part (docs/your-own.md)",
    )


def ledger(scene: Scene) -> Finding:
    """A ledger without gaps."""
    book = scene.facts.book
    if book is None:
        missing = [f"there is no {LEDGER}"]
    else:
        missing = [f"{book.unrecorded} rounds are not in it"] if book.unrecorded else []
    return finding(
        missing,
        f"{LEDGER}: every round, signed",
        "restore the ledger (docs/ledger.md); what it lacks cannot be made up for",
    )


def training_cost(scene: Scene) -> Finding:
    """MACs, seconds and bytes of each round in the ledger."""
    facts = scene.facts
    known = {
        e["round"]
        for e in facts.trained
        if e["event"] == "round" and None not in (e.get("train_macs"), e.get("seconds"))
    }
    book = facts.book
    missing = [f"round {number}" for number in (book.asked if book else ()) if number not in known]
    missing += [] if book and book.rounds else ["no round is in the ledger"]
    return finding(
        missing,
        "event log: round.train_macs, .seconds, .bytes_sent, .bytes_received",
        "keep the event logs of all parts of the run",
    )


def lineage(scene: Scene) -> Finding:
    """That no link of the lineage is broken."""
    return finding(
        scene.lineage.broken,
        f"every file back to devices; signed: {RECORD}, {LEDGER}",
        "restore what was changed, or specialize again",
    )
