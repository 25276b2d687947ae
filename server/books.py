"""What is written down of a round: in the event log, in the ledger, and as strikes."""

from ..protos.flower import Values
from ..supernet.errors import RefusedUpdate
from .events import EventLog
from .ledger import Ledger, RoundRecord, update_digest
from .ledger_entries import STALE
from .reputation import Reputation
from .samplers.assigned import Assigned

TOO_FEW = "too few devices for a round"


class Books:
    """One round's entries; `number` is the round's. Without a ledger only the log is kept."""

    def __init__(
        self, number: int, before: str, log: EventLog, reputation: Reputation, ledger: Ledger | None
    ) -> None:
        self.number = number
        self._log, self._reputation, self._ledger = log, reputation, ledger
        self._record = RoundRecord(before)

    def assigned(
        self, device: str, assigned: Assigned, macs: int, version: int | None = None
    ) -> None:
        """A device was asked for an update; `macs` of one forward pass of one example.

        `version` is that of the weights that it was sent, where it need not be the newest.
        """
        self._record.assign(device, assigned.arch, macs, assigned.offset, version)

    def digest(self, values: Values) -> str:
        """What the ledger notes of an update's values as they came; nothing without a ledger."""
        return update_digest(values) if self._ledger is not None else ""

    def accepted(self, device: str, sha256: str, weight: float) -> None:
        """An update counts; `sha256` is its `digest`."""
        if self._ledger is not None:
            self._record.accept(device, sha256, weight)

    def counted(self, device: str, share: float) -> None:
        """The rule of aggregation let an accepted update count for a share of its weight only."""
        if self._ledger is not None:
            self._record.count_less(device, share)

    def refused(self, device: str, refusal: RefusedUpdate, overtaken: bool = False) -> None:
        """An update was refused; that its weights were `overtaken` is not the device's fault."""
        self._event("update_refused", device=device, code=refusal.code, reason=str(refusal))
        self._record.refuse(device, refusal.code)
        if not (overtaken and refusal.code == STALE):
            self._strike(device, refusal.code)

    def missing(self, device: str, reason: str) -> None:
        """No update came."""
        self._event("no_update", device=device, reason=reason)

    def closed_early(self, accepted: int, devices: list[str]) -> None:
        """The round had enough good updates and did not wait for these devices."""
        self._event("round_closed", accepted=accepted, not_awaited=devices)

    def suspected(self, device: str, code: str) -> None:
        """The rule of aggregation left an update out, or most of it."""
        self._event("update_suspected", device=device, code=code)
        self._record.suspect(device, code)
        self._strike(device, code)

    def remark(self, note: str) -> None:
        """What the rule of aggregation has to say."""
        self._event("aggregation_note", note=note)

    def summed(self, devices: int, cells: int, left_out: int, cut: float) -> None:
        """The secure sum of a round was opened: over so many devices, in so many cells.

        Of `left_out` values that devices trained there is no sum; `cut` is the share of values that
        devices cut to the sum's bound.
        """
        self._event("secure_sum", devices=devices, cells=cells, left_out=left_out, cut=cut)

    def unopened(self, device: str, reason: str) -> None:
        """A device whose update is in the secure sum did not help to open it."""
        self._event("no_reveal", device=device, reason=reason)

    def abandoned(self, accepted: int, **spent: float) -> None:
        """The round came to nothing; `spent` of a private run's budget is."""
        self._event("round_abandoned", accepted=accepted, **spent)
        if self._ledger is not None:
            self._ledger.abandoned(self._record, self.number)

    def done(self, after: str, coverage: float) -> None:
        """The round is over; `after` is the digest of the weights that it leaves."""
        if self._ledger is not None:
            self._ledger.round(self._record, self.number, after, coverage)

    def released(self, device: str) -> None:
        """A device leaves quarantine early: without it too few would be there for a round."""
        self._event("released", device=device, reason=TOO_FEW)
        if self._ledger is not None:
            self._ledger.released(device, TOO_FEW)

    def _strike(self, device: str, code: str) -> None:
        until = self._reputation.strike(device, self.number, code)
        if until is not None:
            self._event("quarantined", device=device, until_round=until, code=code)
            if self._ledger is not None:
                self._ledger.quarantined(device, until, code)

    def _event(self, kind: str, **fields: object) -> None:
        self._log(kind, round=self.number, **fields)
