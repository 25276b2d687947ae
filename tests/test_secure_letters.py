"""Letters of a secure sum: keys, forged rosters, and strangers' bytes on both sides."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedofa.client.privacy.secure_client import SecureClient
from fedofa.client.privacy.trust import Trust
from fedofa.protos.fixed_point import FixedPoint
from fedofa.protos.masks import agreed, mask, opened, public_of, sealed
from fedofa.protos.secure_messages import (
    Header,
    Inbox,
    Invitation,
    Masked,
    Roster,
    Survivors,
    labels,
    runs,
)
from fedofa.server.privacy.secure_server import SecureServer
from fedofa.server.privacy.terms import Terms
from fedofa.supernet.errors import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_fleet import SIZE, STEPS, equal, refused, unequal

# Letters and keys


def test_only_the_two_devices_open_a_letter_and_changes_are_noticed() -> None:
    entropy = np.random.default_rng(0).bytes
    one, two, three = entropy(32), entropy(32), entropy(32)
    key = agreed(one, public_of(two), b"x")
    assert key == agreed(two, public_of(one), b"x")
    assert key not in (agreed(one, public_of(two), b"y"), agreed(three, public_of(two), b"x"))
    letter = sealed(key, b"hello")
    assert opened(key, letter) == b"hello"
    for wrong in (letter[:-1], bytes([letter[0] ^ 1]) + letter[1:], b""):
        with pytest.raises(ValueError, match="changed"):
            opened(key, wrong)


def test_masks_of_other_cells_and_keys_are_others() -> None:
    key = bytes(range(32))
    found = [mask(key, 0, 1000), mask(key, 1, 1000), mask(bytes(32), 0, 1000)]
    assert np.array_equal(found[0], mask(key, 0, 1000))
    assert np.array_equal(found[0][:10], mask(key, 0, 10))
    assert not any(np.any(a == b) for a, b in [found[:2], found[1:], found[::2]])


def test_an_invitation_that_protects_nobody_is_refused() -> None:
    device = SecureClient("d0")
    for clients, threshold in ((4, 2), (5, 2), (100, 50)):
        low = Invitation(session=bytes(16), holder=1, clients=clients, threshold=threshold)
        assert "more than half" in refused("threshold", device.advertise, low.to_bytes())
    for clients, threshold, holder in ((3, 4, 1), (3, 2, 4)):
        wrong = Invitation(session=bytes(16), holder=holder, clients=clients, threshold=threshold)
        refused("roster", device.advertise, wrong.to_bytes())


def changed(roster: bytes, **fields: Any) -> bytes:
    found, tail = Roster.from_bytes(roster)
    return found.model_copy(update=fields).to_bytes(bytes(tail))


def test_a_roster_that_says_too_much_or_is_forged_is_refused() -> None:
    fleet = unequal()
    fleet.step("advert")
    roster = fleet.requests("shares")["a"]
    found, _ = Roster.from_bytes(roster)
    adverts, cells = found.adverts, found.cells
    swapped = adverts[0].model_copy(update={"mask_key": adverts[1].mask_key})
    twice = adverts[2].model_copy(update={"seal_key": adverts[1].seal_key})
    lonely = cells[0].model_copy(update={"cover": (1,)})
    strange = cells[0].model_copy(update={"cover": (1, 2, 9)})
    old = adverts[1].model_copy(update={"session": bytes(16)})
    for code, fields in (
        ("session", {"session": bytes(16)}),
        ("session", {"threshold": 4}),
        ("session", {"clients": 6}),
        ("session", {"adverts": (adverts[0], old, *adverts[2:])}),
        ("threshold", {"least_cover": 1}),
        ("threshold", {"adverts": adverts[:2]}),
        ("threshold", {"cells": (lonely, *cells[1:])}),
        ("roster", {"cells": (strange, *cells[1:])}),
        ("roster", {"adverts": adverts[::-1]}),
        ("roster", {"adverts": (*adverts, adverts[0])}),
        ("key", {"adverts": (swapped, *adverts[1:])}),
        ("key", {"adverts": (*adverts[:2], twice, *adverts[3:])}),
        ("key", {"adverts": adverts[1:]}),
    ):
        refused(code, fleet.device("a").share, changed(roster, **fields))
    fleet.device("a").share(roster)


def test_a_device_takes_part_in_no_sum_over_fewer_than_it_asks() -> None:
    fleet = equal(trust={"d0": Trust(least_cover=3)})
    fleet.step("advert")
    text = refused("threshold", fleet.device("d0").share, fleet.requests("shares")["d0"])
    assert "least_cover = 2; this device asks 3" in text


def test_a_key_that_everybody_knows_is_refused() -> None:
    fleet = equal()
    fleet.step("advert")
    roster = fleet.requests("shares")["d0"]
    adverts = list(Roster.from_bytes(roster)[0].adverts)
    adverts[1] = adverts[1].model_copy(update={"seal_key": bytes(32)})
    text = refused("key", fleet.device("d0").share, changed(roster, adverts=tuple(adverts)))
    assert "d1" in text


def test_signed_adverts_keep_a_server_from_putting_its_own_keys_in() -> None:
    keys = {f"d{n}": Ed25519PrivateKey.generate() for n in range(3)}
    known = {name: key.public_key() for name, key in keys.items()}
    trust = {name: Trust(identity=key, known=known) for name, key in keys.items()}
    assert equal(3, 2, trust=trust).run().counts.tolist() == [3] * SIZE

    fleet = equal(3, 2, trust=trust)
    fleet.step("advert")
    roster = fleet.requests("shares")["d0"]
    adverts = Roster.from_bytes(roster)[0].adverts
    forged = adverts[1].model_copy(update={"mask_key": bytes([9, *bytes(31)])})
    stranger = adverts[1].model_copy(update={"name": "d9"})
    for advert, words in ((forged, "did not sign"), (stranger, "not among the known")):
        wrong = changed(roster, adverts=(adverts[0], advert, adverts[2]))
        assert words in refused("key", fleet.device("d0").share, wrong)


def test_devices_that_were_told_different_rosters_share_no_key() -> None:
    fleet = equal(3, 2)
    fleet.step("advert")
    rosters = fleet.requests("shares")
    rosters["d0"] = changed(rosters["d0"], bound=3.0)
    for name, roster in rosters.items():
        fleet.server.shares(name, fleet.answer("shares", name, roster))
    inbox = fleet.requests("masked")["d1"]
    assert "device d0" in refused("share", fleet.answer, "masked", "d1", inbox)


# Malformed letters


@settings(max_examples=40)
@given(st.binary(max_size=200), st.sampled_from(STEPS))
def test_random_bytes_are_refused_on_both_sides(junk: bytes, step: str) -> None:
    fleet = equal(3, 2)
    for before in STEPS[: STEPS.index(step)]:
        fleet.step(before)
    fleet.requests(step)
    refused("malformed", fleet.answer, step, "d0", junk)
    refused("malformed", getattr(fleet.server, step), "d0", junk)


@pytest.mark.parametrize("step", STEPS)
def test_answers_that_are_not_whole_or_not_awaited_are_refused(step: str) -> None:
    fleet = equal(3, 2)
    for before in STEPS[: STEPS.index(step)]:
        fleet.step(before)
    take = getattr(fleet.server, step)
    answers = {
        name: fleet.answer(step, name, request) for name, request in fleet.requests(step).items()
    }
    good = answers["d0"]
    refused("size", take, "d0", good + b"1")
    if step != "advert":
        refused("size", take, "d0", good[:-1])
        later = STEPS[STEPS.index(step) - 1]
        refused("phase", getattr(fleet.server, later), "d0", good)
    refused("malformed", take, "d0", good[:30])
    refused("sender", take, "d1", good)
    refused("sender", take, "nobody", good)
    take("d0", good)
    refused("sender", take, "d0", good)
    other = equal(3, 2, seed=9)
    for before in STEPS[: STEPS.index(step)]:
        other.step(before)
    other.requests(step)
    refused("session", getattr(other.server, step), "d0", good)


def test_a_device_that_missed_a_step_is_not_heard_later() -> None:
    fleet = equal(4, 3)
    fleet.step("advert")
    fleet.step("shares", without=["d0"])
    inbox = fleet.requests("masked")
    assert sorted(inbox) == ["d1", "d2", "d3"]
    fleet.answer("masked", "d1", inbox["d1"])
    junk = Masked(session=Inbox.from_bytes(inbox["d1"])[0].session, holder=1).to_bytes()
    refused("sender", fleet.server.masked, "d0", junk)


def test_values_of_another_number_than_the_roster_is_for_are_refused() -> None:
    fleet = unequal()
    fleet.until("shares")
    inbox = fleet.requests("masked")["b"]
    for size in (0, 15, 17):
        device = fleet.device("b")
        refused("size", device.mask, inbox, np.zeros(size, np.float32))


def test_a_letter_that_was_changed_on_the_way_is_refused() -> None:
    fleet = equal(3, 2)
    fleet.until("shares")
    inbox = bytearray(fleet.requests("masked")["d0"])
    inbox[-1] ^= 1
    assert "device d2" in refused("share", fleet.answer, "masked", "d0", bytes(inbox))
    refused("share", fleet.answer, "masked", "d0", bytes(inbox[:-1]))
    inbox[-1] ^= 1
    refused("size", fleet.answer, "masked", "d0", bytes(inbox) + b"1")


def spoilt(name: str) -> Callable[[str, bytes], bytes]:
    """Answers of this device with one bit of its last share turned round."""

    def change(sender: str, letter: bytes) -> bytes:
        return letter[:-32] + bytes([letter[-32] ^ 1]) + letter[-31:] if sender == name else letter

    return change


@pytest.mark.parametrize("drops", [{}, {"d4": "masked"}])
def test_one_wrong_share_is_got_round_where_one_can_be_spared(drops: dict[str, str]) -> None:
    for liar in ("d0", "d2"):
        fleet = equal(5, 3)
        fleet.until("masked", drops)
        fleet.step("reveal", changed=spoilt(liar))
        found = fleet.server.result()
        plain = sum(fleet.values[f"d{n}"].astype(float) for n in range(5 - len(drops)))
        assert np.abs(found.sums - plain).max() <= 5 * found.step


@pytest.mark.parametrize("drops", [{}, {"d4": "masked"}])
def test_where_none_can_be_spared_the_secret_is_named(drops: dict[str, str]) -> None:
    fleet = equal(5, 5 - len(drops))
    fleet.until("masked", drops)
    fleet.step("reveal", changed=spoilt("d0"))
    assert "device d4's secret" in refused("share", fleet.server.result)


def test_steps_are_taken_in_order_and_once() -> None:
    fleet = equal(3, 2)
    refused("phase", fleet.server.inboxes)
    refused("phase", fleet.device("d0").share, b"")
    fleet.until("reveal")
    fleet.server.result()
    refused("phase", fleet.server.result)
    refused("phase", fleet.device("d0").unmask, b"")


@pytest.mark.parametrize(
    ("terms", "devices", "words"),
    [
        (Terms(2, 2, 1.0), 4, "threshold = 2 of 4 devices; 3 to 4"),
        (Terms(5, 2, 1.0), 4, "threshold = 5 of 4 devices"),
        (Terms(3, 1, 1.0), 4, "least_cover = 1 of 4 devices; 2 to 4"),
        (Terms(3, 5, 1.0), 4, "least_cover = 5 of 4 devices"),
        (Terms(1, 2, 1.0), 0, "0 devices"),
    ],
)
def test_terms_that_hide_nothing_are_refused(terms: Terms, devices: int, words: str) -> None:
    where = {f"d{n}": np.arange(SIZE) for n in range(devices)}
    with pytest.raises(UsageError, match=words):
        SecureServer(terms, SIZE, where)


@pytest.mark.parametrize(
    ("bound", "clients"), [(0.0, 3), (np.inf, 3), (np.nan, 3), (1.0, 0), (1.0, 2**15)]
)
def test_a_fixed_point_that_holds_nothing_is_refused(bound: float, clients: int) -> None:
    with pytest.raises(ValueError, match=r"bound = |clients = "):
        FixedPoint(bound, clients)


def test_runs_of_another_form_are_refused() -> None:
    data = runs(np.array([0, 0, 1, -1, -1], np.int16))
    assert labels(data, 5).tolist() == [0, 0, 1, -1, -1]
    assert runs(np.empty(0, np.int16)) == b""
    refused("size", labels, data, 6)
    refused("malformed", labels, data[:-1], 5)


def test_a_header_with_unknown_fields_or_of_another_letter_is_refused() -> None:
    good = Survivors(session=bytes(16), holders=(1, 2))
    assert "step" in refused("malformed", Inbox.from_bytes, good.to_bytes())

    class Longer(Header):
        step: str = "survivors"
        session: bytes = bytes(16)
        holders: tuple[int, ...] = (1,)
        more: int = 1

    assert "more" in refused("malformed", Survivors.from_bytes, Longer().to_bytes())
    short = Longer(session=b"123").to_bytes()
    assert "session" in refused("malformed", Survivors.from_bytes, short)
