"""A round whose updates are checked and folded by groups as they arrive."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from ...protos.flower import Values
from ...protos.messages import TrainReply
from ...supernet.axes import Weights
from ...supernet.errors import RefusedUpdate
from ...supernet.weights import Flat
from ..exchange import Answer
from ..intake import Asked, Good, Intake, Judged, Missing
from ..open_round import OpenRound
from ..samplers.assigned import Assigned
from ..shelf import Buffer
from .letters import Arrived, Folded, Refused, Verdict
from .pool import Groups, Lost

Sent = Callable[[Assigned], Flat]
Asking = Mapping[int, Asked]


class Gathering:
    """One round: hands updates to the groups, and notes their verdicts in order of device name.

    What has no place in a partial sum is judged here, as without groups: updates of devices of few
    bits, which wait on disk for the others, and arrays larger than any good one.
    """

    def __init__(
        self, groups: Groups, intake: Intake, work: OpenRound, own: Buffer, low_bits: int
    ) -> None:
        """`own` keeps the updates that are judged here, of devices of at most `low_bits` bits."""
        self._groups, self._intake, self._work = groups, intake, work
        self._own, self._own_nodes, self._low_bits = own, set[int](), low_bits
        self._judged: dict[int, Judged] = {}
        self._given: dict[int, tuple[Asked, TrainReply, int]] = {}

    def goods(
        self,
        weights: Weights,
        asked: Asking,
        sent: Sent,
        answers: Iterable[Answer[TrainReply]],
        enough: int | None,
    ) -> Iterator[Good]:
        """The good updates in order of name; ends with the first `enough` ones, if so many are.

        An update whose group's process ends counts as missing.
        """
        awaited = dict(asked)
        self._groups.begin(weights)
        for answer in answers:
            one = asked[answer.node]
            awaited.pop(answer.node, None)
            self._take(one, sent, answer)
            # Not more are under way than may count.
            while enough is not None and self._good + self._groups.waiting >= enough:
                if not self._groups.waiting:
                    break
                self._hear(self._groups.collect(block=True))
            if self._good == enough:
                break
        while self._groups.waiting:
            self._hear(self._groups.collect(block=True))
        partials, lost = self._groups.finish()
        self._hear(lost)
        for partial in partials:
            self._work.add_partial(partial)
        if awaited and self._good == enough:
            names = [one.member.name for one in awaited.values()]
            self._intake.books.closed_early(self._good, names)
        yield from self._noted(asked)

    @property
    def _good(self) -> int:
        return sum(isinstance(found, Good) for found in self._judged.values())

    def _take(self, asked: Asked, sent: Sent, answer: Answer[TrainReply]) -> None:
        body, values = answer.body, answer.values
        if body is None or values is None or not self._is_for_groups(asked, values):
            self._judged[answer.node] = self._judge(asked, sent, answer)
            return
        self._given[answer.node] = asked, body, values.nbytes
        weight, kind = self._work.weight(asked), values.dtype.name
        told = Arrived(answer.node, 0, kind, values.size, asked, body, weight)
        self._hear(self._groups.submit(told, values))

    def _is_for_groups(self, asked: Asked, values: Values) -> bool:
        return asked.member.profile.train_bits > self._low_bits and self._groups.takes(values)

    def _judge(self, asked: Asked, sent: Sent, answer: Answer[TrainReply]) -> Judged:
        found = self._intake.judge(asked, sent(asked.assigned), answer)
        if not isinstance(found, Good):
            return found
        self._own.add(found)
        self._own_nodes.add(answer.node)
        return replace(found, delta=None)

    def _hear(self, told: Iterable[Verdict | Lost]) -> None:
        for one in told:
            asked, reply, size_bytes = self._given[one.node]
            if isinstance(one, Folded):
                good = Good(asked, reply, None, one.change, one.sha256, size_bytes)
                self._judged[one.node] = good
            elif isinstance(one, Refused):
                self._judged[one.node] = RefusedUpdate(one.code, one.detail)
            # What was refused was in no sum.
            elif not isinstance(self._judged.get(one.node), RefusedUpdate):
                self._judged[one.node] = Missing(one.reason)

    def _noted(self, asked: Asking) -> Iterator[Good]:
        own = self._own.emptied()  # in order of name, as `asked` is
        for node, one in asked.items():
            if node not in self._judged:
                continue
            found = next(own) if node in self._own_nodes else self._judged[node]
            good = self._intake.note(one, found)
            if good is not None:
                yield good
