"""Which answers of a round count: all, or the good ones that come first."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from ..protos.messages import TrainReply
from .books import Books
from .exchange import Answer, in_order
from .intake import Asked, Good
from .shelf import Buffer

Admit = Callable[[Asked, Answer[TrainReply]], Good | None]
"""Checks an answer; None where no update in it counts."""
Asking = Mapping[int, Asked]
"""Node → what it was asked, in order of device name."""
Answers = Iterable[Answer[TrainReply]]


def all_good(admit: Admit, asked: Asking, answers: Answers) -> Iterator[Good]:
    """The good updates in order of name, whatever the order of arrival; checked in that order too.

    So a network and one process give equal bits.
    """
    for answer in in_order(answers, list(asked)):
        good = admit(asked[answer.node], answer)
        if good is not None:
            yield good


def first_good(
    admit: Admit, asked: Asking, answers: Answers, buffer: Buffer, enough: int, books: Books
) -> Iterator[Good]:
    """The `enough` good updates that come first, in order of name; the others are not awaited.

    An update is checked when it comes, since only a good one counts.
    """
    awaited = dict(asked)
    for answer in answers:
        awaited.pop(answer.node, None)
        good = admit(asked[answer.node], answer)
        if good is not None:
            buffer.add(good)
        if len(buffer) == enough:
            break
    if awaited and len(buffer) == enough:
        books.closed_early(enough, [one.member.name for one in awaited.values()])
    return buffer.emptied()
