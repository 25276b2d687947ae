"""When a finished subnet counts as better: an exact sign test on the examples that changed."""

from math import comb

import pytest
from fedofa.server.finishing.compared import CHANCE, Compared, tail
from fedofa.server.paired import Paired


def compared(gained: int, lost: int) -> Compared:
    return Compared(Paired(4000, lost, gained, 5758))


def test_one_changed_example_is_no_evidence() -> None:
    found = compared(1, 0)
    assert not found.better
    assert found.verdict.startswith("not better than chance may be (p above 0.16): ")
    assert "(1 gained, 0 lost: p = 0.5); nothing was published" in found.verdict
    assert not compared(0, 0).better
    assert not compared(2, 0).better
    assert compared(3, 0).better
    assert compared(300, 200).verdict.startswith("better: ")
    assert compared(3, 0).to_row()["p"] == pytest.approx(1 / 8)


@pytest.mark.parametrize("changed", [1, 2, 3, 10, 60, 700])
def test_the_tail_is_that_of_the_counted_throws(changed: int) -> None:
    for gained in range(changed + 1):
        counted = sum(comb(changed, heads) for heads in range(gained, changed + 1)) / 2**changed
        assert tail(gained, changed) == pytest.approx(counted, rel=1e-9)


def test_where_nothing_was_learned_it_errs_at_most_as_often_as_it_says() -> None:
    """Every outcome of a fair coin, each as often as it comes up, whatever the number of changes."""
    rates = []
    for changed in range(301):
        outcomes = range(changed + 1)
        errors = sum(comb(changed, g) for g in outcomes if compared(g, changed - g).better)
        rates.append(errors / 2**changed)
    assert max(rates) <= CHANCE
    assert rates[0] == rates[1] == rates[2] == 0
    assert rates[300] > 0.12  # and it is not needlessly strict where there is much to count
