"""Which answers of a round count: all, or the good ones that come first."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from ..protos.messages import TrainReply
from ..supernet.weights import Flat
from .exchange import Answer, in_order
from .intake import Asked, Good, Intake
from .samplers.assigned import Assigned
from .shelf import Buffer

Sent = Callable[[Assigned], Flat]
Asking = Mapping[int, Asked]
"""Node → what it was asked, in order of device name."""
Answers = Iterable[Answer[TrainReply]]


def all_good(intake: Intake, asked: Asking, sent: Sent, answers: Answers) -> Iterator[Good]:
    """The good updates in order of name, whatever the order of arrival; checked in that order too.

    So a network and one process give equal bits.
    """
    for answer in in_order(answers, list(asked)):
        one = asked[answer.node]
        good = intake.admit(one, sent(one.assigned), answer)
        if good is not None:
            yield good


def first_good(
    intake: Intake, asked: Asking, sent: Sent, answers: Answers, buffer: Buffer, enough: int
) -> Iterator[Good]:
    """The `enough` good updates that come first, in order of name; the others are not awaited.

    An update is checked when it comes, since only a good one counts.
    """
    awaited = dict(asked)
    for answer in answers:
        one = asked[answer.node]
        awaited.pop(answer.node, None)
        good = intake.admit(one, sent(one.assigned), answer)
        if good is not None:
            buffer.add(good)
        if len(buffer) == enough:
            break
    if awaited and len(buffer) == enough:
        intake.books.closed_early(enough, [one.member.name for one in awaited.values()])
    return buffer.emptied()
