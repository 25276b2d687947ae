"""Each reason to refuse an update, and that an honest one passes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fedofa.protos.messages import TrainReply
from fedofa.server.validation import Expected, capped_examples, checked
from fedofa.supernet.errors import RefusedUpdate
from fedofa.supernet.space import Arch

TENSORS = (("first", (2, 3)), ("scalar", ()), ("last", (4,)))
SENT = np.linspace(-1, 1, 11, dtype=np.float32)
ARCH = Arch({"depth": 2, "width": 8})
EXPECTED = Expected(
    run="night",
    round=3,
    device="phone-1",
    arch=ARCH,
    tensors=TENSORS,
    sent=SENT,
    examples=100,
    max_update_ratio=5.0,
)
REPLY = TrainReply(
    run="night", round=3, device="phone-1", arch=dict(ARCH), examples=100, steps=4, loss=0.5,
    train_macs=10, seconds=0.1, tensors=TENSORS,
)  # fmt: skip
GOOD = SENT + np.float32(0.1)


def code(values: Any = GOOD, expected: Expected = EXPECTED, **changes: object) -> tuple[str, str]:
    with pytest.raises(RefusedUpdate) as refusal:
        checked(expected, REPLY.model_copy(update=changes), values)
    return refusal.value.code, str(refusal.value)


def test_of_an_honest_update_its_change_is_given() -> None:
    delta = checked(EXPECTED, REPLY, GOOD)
    assert delta.dtype == np.float32
    assert np.array_equal(delta, GOOD - SENT)


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"round": 2}, "stale_round", "round 2"),
        ({"round": 4}, "stale_round", "round 4"),
        ({"run": "day"}, "stale_round", "run day"),
        ({"device": "phone-2"}, "device", "'phone-2'"),
        ({"arch": {"depth": 1, "width": 8}}, "assignment_mismatch", "assigned"),
        ({"arch": {"depth": 2}}, "assignment_mismatch", "assigned"),
        ({"arch": {}}, "assignment_mismatch", "assigned"),
        ({"tensors": TENSORS[:-1]}, "schema", "tensors"),
        ({"tensors": TENSORS[::-1]}, "schema", "tensors"),
        ({"tensors": (("first", (3, 2)), *TENSORS[1:])}, "schema", "tensors"),
        ({"tensors": (("other", (2, 3)), *TENSORS[1:])}, "schema", "tensors"),
        ({"loss": float("nan")}, "loss", "nan"),
        ({"loss": float("inf")}, "loss", "inf"),
        ({"loss": 1.7e308}, "loss", "1.7e+308; 0 to 1e+06"),
        ({"loss": 1.1e6}, "loss", "1e+06"),
        ({"loss": -1e-9}, "loss", "-1e-09"),
        ({"examples": 0}, "bad_weight", "0"),
        ({"examples": -5}, "bad_weight", "-5"),
        ({"examples": 101}, "bad_weight", "its profile says 100"),
        ({"examples": 10**9}, "bad_weight", "its profile says 100"),
    ],
)
def test_a_reply_to_something_else_is_refused(
    changes: dict[str, object], reason: str, words: str
) -> None:
    found, text = code(GOOD, EXPECTED, **changes)
    assert found == reason
    assert words in text
    assert text.startswith(f"{reason}: ")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (None, "dtype"),
        (GOOD.astype(np.float64), "dtype"),
        (GOOD.view(np.uint8), "dtype"),
        (GOOD[:-1], "shape"),
        (np.append(GOOD, GOOD[:1]), "shape"),
        (GOOD[:1], "shape"),  # would broadcast
        (GOOD[:0], "shape"),
        (GOOD[:, None], "shape"),
        (GOOD[None], "shape"),
        (np.float32(0.1), "shape"),
    ],
)
def test_an_array_of_another_form_is_refused(values: Any, reason: str) -> None:
    assert code(values)[0] == reason


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("place", "name"), [(0, "first"), (5, "first"), (6, "scalar"), (7, "last"), (10, "last")]
)
def test_a_value_that_is_no_number_is_refused_naming_its_tensor(
    bad: float, place: int, name: str
) -> None:
    values = GOOD.copy()
    values[place] = bad
    found, text = code(values)
    assert found == "non_finite"
    assert name in text


def test_an_update_that_moves_too_far_is_refused() -> None:
    norm = float(np.linalg.norm(SENT))
    direction = np.zeros_like(SENT)
    direction[0] = 1.0
    checked(EXPECTED, REPLY, SENT + np.float32(4.99 * norm) * direction)
    found, text = code(SENT + np.float32(5.01 * norm) * direction)
    assert found == "norm"
    assert "at most" in text


@pytest.mark.parametrize("size", [1e19, 1e30, 3e38])
def test_finite_values_so_large_that_their_square_is_not_are_refused(size: float) -> None:
    assert code(np.full_like(SENT, size) * np.sign(SENT + 1e-9))[0] == "norm"
    sent = np.full_like(SENT, -3e38)
    assert code(np.full_like(SENT, 3e38), replace(EXPECTED, sent=sent))[0] == "norm"


def test_weights_that_are_all_zero_may_still_move_a_little() -> None:
    blank = replace(EXPECTED, sent=np.zeros_like(SENT))
    checked(blank, REPLY, GOOD)
    assert code(np.full_like(SENT, 3.0), blank)[0] == "norm"


def test_no_client_outweighs_the_fleet() -> None:
    assert capped_examples(100, 80.0, 20.0) == 100.0
    assert capped_examples(10**6, 80.0, 20.0) == 20 * 80.0


def test_the_first_wrong_thing_is_named() -> None:
    assert code(None, round=1, device="x", examples=0)[0] == "stale_round"
    assert code(GOOD[:1], examples=0)[0] == "shape"
