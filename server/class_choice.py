"""What a search found for a device class, and what stands beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..protos.manifest import FileKind
from ..protos.subnets import Statistics
from ..specialize.predictors.rank_report import RankReport
from ..specialize.search.audit import Audit, audit_one
from ..specialize.search.contract import Found, Scored
from ..supernet.cost import Budget
from ..supernet.space import Arch
from .figures import Measured


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subnet that was measured for a class. `origin`: searched, largest or random."""

    arch: Arch
    origin: str
    macs: int
    measured: Measured

    @property
    def scored(self) -> Scored:
        """Its accuracy with the standard error."""
        return Scored(self.measured.accuracy, self.measured.error)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a class gets, what stood beside it, and how the search came to it.

    `candidates` were measured together, the search's own first choice first; that one was the best
    of `chosen_from` by earlier measurements (1: by prediction alone). `rank` is of the predictor,
    over the subnets of all classes that the search measured. `predicted_ms` is the latency of the best,
    by the kind of file that the class's bound is about; empty where none is bounded.
    """

    device_class: str
    budget: Budget
    best: Candidate
    statistics: Statistics
    candidates: tuple[Candidate, ...]
    method: str
    found: Found
    chosen_from: int
    rank: RankReport
    predicted_ms: Mapping[FileKind, float] = field(default_factory=dict)

    @property
    def margin(self) -> tuple[float, float] | None:
        """Accuracy of the search's first choice over the mean of the random ones, and its error.

        Not of the best of all candidates, which is never below that mean. None where nothing else
        fits the budget.
        """
        first = self.candidates[0].measured
        others = [c.measured for c in self.candidates if c.origin == "random"]
        if not others:
            return None
        mean = sum(m.accuracy for m in others) / len(others)
        spread = sum(m.error**2 for m in others) / len(others) ** 2
        return first.accuracy - mean, (first.error**2 + spread) ** 0.5

    @property
    def audit(self) -> Audit | None:
        """The first choice against random and the largest; None where there is no other to draw,
        or the random ones are never right.
        """
        first = self.candidates[0]
        random = [c.scored for c in self.candidates if c.origin == "random"]
        if not any(one.score > 0 for one in random):
            return None
        largest = next((c for c in self.candidates if c.origin == "largest"), None)
        beside = None if largest is None or largest is first else largest.scored
        return audit_one(first.scored, random, beside, self.chosen_from)

    def to_row(self) -> Mapping[str, Any]:
        """What the search did and what may be claimed of it, for the reports."""
        margin, audit = self.margin, self.audit
        return {
            "searched": audit is not None and audit.searched,
            "over_random_percent": audit_text(audit),
            "predictor": rank_text(self.rank),
            "candidates": [
                {
                    "arch": dict(c.arch),
                    "origin": c.origin,
                    "macs": c.macs,
                    "accuracy": c.measured.accuracy,
                    "standard_error": c.measured.error,
                    "examples": c.measured.examples,
                }
                for c in self.candidates
            ],
            "over_random": margin and {"mean": margin[0], "standard_error": margin[1]},
            "audit": audit and audit.to_dict(),
            "rank_report": self.rank.to_dict(),
            "method": self.method,
            "evaluations": self.found.evaluations,
            "evaluated": [
                {"arch": dict(e.arch), "accuracy": e.score, "standard_error": e.error}
                for e in self.found.evaluated
            ],
            "best_so_far": [one.score for one in self.found.best_so_far],
        }


def audit_text(audit: Audit | None) -> str:
    """The improvement over random in per cent, with its interval, for a table."""
    if audit is None:
        return "nothing to compare with"
    gain = audit.improvement
    if audit.random < 2:
        return f"{gain.value:+.1f} (of one random subnet: no interval)"
    return f"{gain.value:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"


def rank_text(rank: RankReport) -> str:
    """The verdict on the predictor, for a table."""
    return f"{rank.verdict} (τ {rank.tau:.2f}, of MACs {rank.tau_macs:.2f})"
