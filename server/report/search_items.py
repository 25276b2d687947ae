"""Best practices that are about the search and what came of it. Advice is in each finding."""

from ...specialize.predictors.rank_report import FEWEST
from ..model_folders import RESULTS
from ..run_record import RECORD
from .costs import of_measuring
from .finding import NO_CLASSES, Finding, Scene, finding, of_classes
from .held_out import HOW
from .logs import Row

FEWEST_RANDOM = 8
"""Random subnets of a class; Yang et al. (2020) compare with eight seeds."""
PREDICTING = ("predicted", "linas", "soft")


def test_part(scene: Scene) -> Finding:
    """Measurements on examples of no device."""
    if not scene.facts.results:
        return NO_CLASSES
    measured = {one.device_class for one in scene.held_out}
    missing = [
        f"class {row['class']}: only validation examples, which the search chose by"
        for row in scene.facts.results
        if row["class"] not in measured
    ]
    return finding(
        missing,
        "--held-out files",
        f"measure each class's model on examples of no device ({HOW} > FILE), then report with "
        "--held-out FILE",
    )


def search_cost(scene: Scene) -> Finding:
    """What measuring cost, by fidelity."""
    fidelities = [str(row["fidelity"]) for row in of_measuring(scene.facts)]
    missing = [
        f"no cost of {what} is noted"
        for what in ("subnets of the supernet", "exported files")
        if not any(fidelity.startswith(what) for fidelity in fidelities)
    ]
    return finding(
        missing,
        f"event log: measured (evaluations by fidelity, MACs, seconds); {RECORD}: jobs.seconds",
        "keep the event log of the specialization, or specialize again",
    )


def anytime(scene: Scene) -> Finding:
    """Every evaluation of each search."""

    def lacks(row: Row) -> str:
        sizes = {len(row["evaluated"]), len(row["best_so_far"]), int(row["evaluations"])}
        return "" if len(sizes) == 1 and 0 not in sizes else "not every evaluation is noted"

    return of_classes(scene, lacks, f"{RESULTS}: evaluated, best_so_far", "specialize again")


def random(scene: Scene) -> Finding:
    """Enough random subnets in each audit."""
    if not scene.facts.results:
        return NO_CLASSES
    if all(len(row["candidates"]) == 1 for row in scene.facts.results):
        return Finding("does not apply", "one subnet alone fits each class")

    def lacks(row: Row) -> str:
        count = row["audit"]["random"] if row["audit"] else 0
        return "" if count >= FEWEST_RANDOM else f"{count} random subnets"

    return of_classes(
        scene,
        lacks,
        f"{RESULTS}: audit.random",
        f"[search] random_baseline = {FEWEST_RANDOM} or more",
    )


def protocol(scene: Scene) -> Finding:
    """One exchange for all that is compared."""

    def lacks(row: Row) -> str:
        if len({one.get("examples") for one in row["candidates"]}) != 1:
            return "its subnets were not measured on the same examples"
        origins = {one["origin"] for one in row["candidates"]}
        chosen = row["candidates"][0]["macs"] == max(one["macs"] for one in row["candidates"])
        return "" if "largest" in origins or chosen else "the largest subnet is not beside them"

    return of_classes(
        scene,
        lacks,
        f"{RESULTS}: candidates.examples, .origin (one exchange, the same devices)",
        "specialize again",
    )


def claims(scene: Scene) -> Finding:
    """That results claim no more than their audit does."""

    def lacks(row: Row) -> str:
        low = row["audit"]["improvement"]["low"] if row["audit"] else None
        earned = low is not None and low > 0
        if row["audit"] is None and row["searched"]:
            return "called searched, with no audit"
        return (
            "" if bool(row["searched"]) == earned else f"searched = {row['searched']}, from {low}"
        )

    return of_classes(
        scene, lacks, f"{RESULTS}: searched, audit.improvement", "restore the results"
    )


def predictor(scene: Scene) -> Finding:
    """A rank report over enough subnets."""
    method = scene.facts.config.search.method
    if method not in PREDICTING:
        return Finding("does not apply", f"[search] method = {method!r} goes by measurements")

    def lacks(row: Row) -> str:
        count = row["rank_report"]["subnets"] if row["rank_report"] else 0
        return "" if count >= FEWEST else f"{count} measured subnets say nothing of a predictor"

    return of_classes(
        scene, lacks, f"{RESULTS}: rank_report", f"[search] samples: {FEWEST} subnets or more"
    )


def files(scene: Scene) -> Finding:
    """Each file's own accuracy."""

    def lacks(row: Row) -> str:
        unmeasured = [kind for kind in row["size_bytes"] if kind not in row["validation"]]
        return f"{', '.join(unmeasured)} not measured" if unmeasured else ""

    return of_classes(
        scene, lacks, f"{RESULTS}: validation, of each file in its runtime", "specialize again"
    )
