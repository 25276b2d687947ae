"""Secure sums: what comes out is the sum, what goes in stays hidden, and strangers are refused."""

import random

import numpy as np
import pytest
from fedofa.protos.fixed_point import MOST_CLIENTS, FixedPoint
from fedofa.protos.masks import mask, pair_key
from fedofa.protos.places import PlacesOfDevices, places
from fedofa.protos.secure_messages import (
    Masked,
    Survivors,
    labels,
)
from fedofa.protos.shamir import PRIME, SHARE_BYTES, drawn_secret, join, split
from fedofa.server.privacy.cells import cell_map
from fedofa.server.privacy.terms import Terms
from fedofa.supernet.axes import layout, regions, rolled_regions
from fedofa.supernet.families.catalogue import preset
from fedofa.supernet.weights import gather, initial
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_fleet import BOUND, SIZE, STEPS, Fleet, equal, refused, unequal

# The sum


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_the_masked_sum_is_the_plain_sum_of_the_devices_that_stayed(seed: int) -> None:
    draw = random.Random(seed)
    devices, least = draw.randint(3, 7), draw.randint(2, 3)
    threshold = draw.randint(devices // 2 + 1, devices)
    where = {
        f"d{n}": np.array(sorted(draw.sample(range(SIZE), draw.randint(1, SIZE))))
        for n in range(devices)
    }
    leaving = draw.sample(sorted(where), draw.randint(0, devices - threshold))
    drops = {name: draw.choice(STEPS) for name in leaving}
    fleet = Fleet(where, Terms(threshold, least, BOUND), seed=seed)
    found = fleet.run(drops)

    took_part = [name for name in where if drops.get(name, "reveal") == "reveal"]
    plain, counts = np.zeros(SIZE), np.zeros(SIZE, int)
    for name in took_part:
        plain[where[name]] += fleet.values[name]
        counts[where[name]] += 1
    summed = counts >= least
    assert found.counts.tolist() == np.where(summed, counts, 0).tolist()
    assert np.all(np.abs(found.sums - plain)[summed] <= counts[summed] * found.step)
    assert np.all(found.sums[~summed] == 0)
    covered = np.zeros(SIZE, bool)
    for name in set(where) - {name for name, at in drops.items() if at == "advert"}:
        covered[where[name]] = True
    assert found.left_out == int((covered & ~summed).sum())


def test_values_of_a_cell_that_lost_its_devices_stay_hidden_and_the_others_are_summed() -> None:
    """One of the two largest devices leaves: the other's last values must not be told."""
    fleet = unequal()
    found = fleet.run({"e": "masked"})
    assert found.counts.tolist() == [4] * 8 + [3] * 8 + [2] * 8 + [0] * 16
    assert found.left_out == 16
    # Nobody revealed the seed: what the server holds there is no sum of numbers within the bound.
    server = fleet.server
    lost = [n for n, cell in enumerate(server._map.cells) if cell.cover == (4, 5)]
    spans = [server._map.span(number) for number in lost]
    assert [server._map.order[span].tolist() for span in spans] == [list(range(24, 40))]
    own = FixedPoint(BOUND, 5).encode(fleet.values["d"][24:])
    assert not np.any(server._total[spans[0]] == own)
    assert not {cell for _, cell in server._open.needed({1, 2, 3, 4})} & set(lost)


def test_a_sum_over_all_devices_at_their_largest_values_does_not_overflow() -> None:
    for sign in (1, -1):
        values = {f"d{n}": np.full(SIZE, sign * BOUND, np.float32) for n in range(5)}
        assert equal(values=values).run().sums.tolist() == pytest.approx([sign * 5 * BOUND] * SIZE)


def test_values_beyond_the_bound_count_as_the_bound() -> None:
    values = {f"d{n}": np.full(SIZE, 1e6 if n else -1e6, np.float32) for n in range(3)}
    found = equal(3, 2, values=values).run()
    assert found.sums.tolist() == pytest.approx([BOUND] * SIZE)


def test_subnets_of_a_real_space_are_summed_where_they_lie() -> None:
    space = preset("digits")
    shared = {name: tensor.shape for name, tensor in layout(space).items()}
    size = sum(int(np.prod(shape)) for shape in shared.values())
    small, large = space.smallest(), space.largest()
    where = {
        "a": regions(space, small),
        "b": regions(space, large),
        "c": rolled_regions(space, small, -2),  # wraps round: not in ascending order
        "d": rolled_regions(space, small, 3),
    }
    weights = [initial(space, seed) for seed in range(4)]
    plain, own = np.zeros(size), {}
    for (name, region), values in zip(where.items(), weights, strict=True):
        at, flat = places(shared, region), gather(values, region)
        own[name] = flat[np.argsort(at)]
        plain[at] += flat
    found = Fleet(PlacesOfDevices(shared, where), Terms(3, 2, 5.0), own, size=size).run()
    assert 0 < found.left_out < size
    there = found.counts > 0
    assert np.abs(found.sums - plain)[there].max() <= 4 * found.step


# What is hidden


def test_a_masked_message_is_uniform_bytes_whatever_the_values_are() -> None:
    size, names = 100_000, ("d0", "d1", "d2")
    values = {name: np.zeros(size, np.float32) for name in names}
    where = {name: np.arange(size) for name in names}
    fleet = Fleet(where, Terms(2, 2, BOUND), values, size=size)
    fleet.until("masked")
    words = {}
    for name, letter in fleet.sent["masked"].items():
        tail = Masked.from_bytes(letter)[1]
        counts = np.bincount(np.frombuffer(tail, np.uint8), minlength=256)
        expected = 4 * size / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert 150 < chi_square < 380, name  # 255 ± 5.5 standard deviations
        words[name] = np.frombuffer(tail, "<u4").astype(float)
    # Nor do two of them together say anything: a third device's masks are on both.
    assert abs(np.corrcoef(words["d0"], words["d1"])[0, 1]) < 0.02
    fleet.step("reveal")
    assert np.all(fleet.server.result().sums == 0)


def test_the_same_values_are_masked_anew_each_time() -> None:
    first, second = equal(seed=1), equal(seed=2)
    for fleet in (first, second):
        fleet.values = {name: np.ones(SIZE, np.float32) for name in fleet.places}
        fleet.until("masked")
    assert first.sent["masked"]["d0"][-160:] != second.sent["masked"]["d0"][-160:]


def test_a_late_message_stays_hidden_though_its_pairwise_masks_are_known() -> None:
    """The server gets the mask key of a device that seemed to be gone; its own mask remains."""
    fleet = equal()
    fleet.until("shares")
    for name, request in fleet.requests("masked").items():
        late = fleet.answer("masked", name, request)
        if name != "d0":
            fleet.server.masked(name, late)
        else:
            kept, seeds = late, fleet.device("d0")._state.seeds
    fleet.step("reveal", without=["d0"])
    fleet.server.result()
    refused("phase", fleet.server.masked, "d0", kept)
    server = fleet.server
    assert server._open.needed({1}) == ((1, None),)
    private = join({h: found[1, None] for h, found in server._revealed.items()})
    words = np.frombuffer(Masked.from_bytes(kept)[1], "<u4").copy()
    for other in server._roster.adverts[1:]:
        words -= mask(pair_key(private, other.mask_key, server._binding), 0, SIZE)
    words -= FixedPoint(BOUND, 5).encode(fleet.values["d0"])
    assert words.tolist() == mask(seeds[0], 0, SIZE).tolist()
    assert np.all(words != 0)


def test_no_device_ever_reveals_both_secrets_of_another() -> None:
    fleet = equal()
    fleet.until("masked", {"d0": "masked"})
    request = fleet.requests("reveal")["d1"]
    device = fleet.device("d1")
    device.unmask(request)
    session = Survivors.from_bytes(request)[0].session
    other = Survivors(session=session, holders=(1, 2, 3, 4, 5)).to_bytes()
    refused("phase", device.unmask, other)
    asked = fleet.server._open.needed({1, 2, 3, 4, 5})
    keys = {holder for holder, cell in asked if cell is None}
    assert keys == {1}
    assert {holder for holder, cell in asked if cell is not None} == {2, 3, 4, 5}


@pytest.mark.parametrize("step", STEPS)
def test_with_one_device_fewer_than_the_threshold_nothing_is_revealed(step: str) -> None:
    fleet = equal(5, 4)
    drops = {"d0": step, "d1": step}
    text = refused("threshold", fleet.run, drops)
    assert "3 devices are left" in text
    assert "4 are needed" in text
    assert fleet.server._revealed.keys() == ({3, 4, 5} if step == "reveal" else set())
    # And with exactly as many as that it works.
    assert equal(5, 4).run({"d0": step}).counts.min() >= 4


def test_devices_do_not_reveal_a_sum_over_too_few() -> None:
    fleet = equal(5, 4)
    fleet.until("masked")
    session = Survivors.from_bytes(fleet.requests("reveal")["d0"])[0].session
    few = Survivors(session=session, holders=(1, 2, 3)).to_bytes()
    assert "3 devices are left; 4 are needed" in refused(
        "threshold", fleet.device("d0").unmask, few
    )
    fleet.device("d0").unmask(Survivors(session=session, holders=(1, 2, 3, 4)).to_bytes())


@pytest.mark.parametrize("holders", [(2, 3, 4, 5), (1, 2, 3, 4, 6), (1, 1, 2, 3), (3, 2, 1, 4)])
def test_devices_reveal_nothing_for_a_list_that_is_wrong(holders: tuple[int, ...]) -> None:
    fleet = equal(5, 4)
    fleet.until("masked")
    session = Survivors.from_bytes(fleet.requests("reveal")["d0"])[0].session
    wrong = Survivors(session=session, holders=holders).to_bytes()
    refused("survivors", fleet.device("d0").unmask, wrong)


def test_a_device_that_sent_no_shares_cannot_be_a_survivor() -> None:
    fleet = equal(5, 4)
    fleet.until("masked", {"d4": "shares"})
    session = Survivors.from_bytes(fleet.requests("reveal")["d0"])[0].session
    wrong = Survivors(session=session, holders=(1, 2, 3, 5)).to_bytes()
    refused("survivors", fleet.device("d0").unmask, wrong)


# Shamir, fixed point, cells, places


@given(st.integers(1, 8), st.integers(0, 6), st.integers(0, 2**32))
def test_any_threshold_of_the_shares_gives_the_secret(threshold: int, more: int, seed: int) -> None:
    entropy = np.random.default_rng(seed).bytes
    secret = drawn_secret(entropy)
    shares = dict(enumerate(split(secret, threshold, threshold + more, entropy), 1))
    chosen = random.Random(seed).sample(sorted(shares), threshold)
    assert join({x: shares[x] for x in chosen}) == secret
    assert join(shares) == secret


def test_fewer_shares_than_the_threshold_fit_every_secret_alike() -> None:
    entropy = np.random.default_rng(0).bytes
    shares = split(drawn_secret(entropy), 3, 5, entropy)
    for guess in (0, 1, PRIME - 1):
        # The parabola through the guess and the two known shares has this value at 3.
        known = [int.from_bytes(share, "little") for share in shares[:2]]
        third = (guess - 3 * known[0] + 3 * known[1]) % PRIME
        found = join({1: shares[0], 2: shares[1], 3: third.to_bytes(SHARE_BYTES, "little")})
        assert int.from_bytes(found, "little") == guess
    assert join({1: shares[0], 2: shares[1]}) != join(dict(enumerate(shares, 1)))


@pytest.mark.parametrize("share", [b"", bytes(31), bytes(33), b"\xff" * 32])
def test_a_share_of_another_form_is_refused(share: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        join({1: bytes(32), 2: share})


@given(st.floats(1e-6, 1e6), st.integers(1, MOST_CLIENTS), st.integers(0, 2**32))
def test_a_value_loses_less_than_a_step_and_never_grows(
    bound: float, clients: int, seed: int
) -> None:
    point = FixedPoint(bound, clients)
    inside = np.random.default_rng(seed).uniform(-bound, bound, 100)
    values = np.concatenate([inside, [0.0, bound, -bound, np.nextafter(bound, 0)]])
    words = point.encode(values)
    found = point.decode(words)
    assert np.all(np.abs(found - values) <= point.step * (1 + 1e-9))
    assert np.all(np.abs(found) <= np.abs(values) * (1 + 1e-12))
    # The largest sum that can come up still is what it is.
    largest = int(np.abs(words.view(np.int32).astype(np.int64)).max())
    assert clients * largest < 2**31


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_cannot_be_summed(bad: float) -> None:
    values = {f"d{n}": np.full(SIZE, bad, np.float32) for n in range(5)}
    fleet = equal(values=values)
    fleet.until("shares")
    request = fleet.requests("masked")["d0"]
    refused("non_finite", fleet.answer, "masked", "d0", request)


@settings(max_examples=30)
@given(st.data())
def test_a_cell_is_all_values_that_the_same_devices_cover(data: st.DataObject) -> None:
    devices, least = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    where = {n: np.flatnonzero(rng.random(SIZE) < rng.random()) for n in range(1, devices + 1)}
    found = cell_map(SIZE, list(where), where.__getitem__, least)
    expected: dict[tuple[int, ...], list[int]] = {}
    for value in range(SIZE):
        cover = tuple(n for n in where if value in where[n])
        expected.setdefault(cover, []).append(value)
    assert {
        cell.cover: found.order[found.span(number)].tolist()
        for number, cell in enumerate(found.cells)
    } == {cover: at for cover, at in expected.items() if len(cover) >= least}
    few = [at for cover, at in expected.items() if 0 < len(cover) < least]
    assert found.left_out == sum(map(len, few))
    own = found.label[where[1]]
    assert labels(found.runs_of(where[1]), len(where[1])).tolist() == own.tolist()


def test_beyond_the_most_cells_the_smallest_are_left_out() -> None:
    where = {1: np.arange(40), 2: np.arange(40), 3: np.arange(25), 4: np.arange(5), 5: np.arange(0)}
    found = cell_map(SIZE, list(where), where.__getitem__, 2, most_cells=2)
    assert [cell.size for cell in found.cells] == [20, 15]
    assert found.left_out == 5
    # What all devices have comes first, however little it is.
    del where[5]
    found = cell_map(SIZE, list(where), where.__getitem__, 2, most_cells=2)
    assert [cell.size for cell in found.cells] == [5, 20]
    assert found.left_out == 15


def test_places_are_where_the_values_lie_in_the_supernet() -> None:
    space = preset("digits")
    shared = {name: tensor.shape for name, tensor in layout(space).items()}
    numbered = initial(space, 0)
    at = 0
    for tensor in numbered.values():
        tensor.view(-1).copy_(tensor.new_tensor(range(at, at + tensor.numel())))
        at += tensor.numel()
    for region in (
        regions(space, space.smallest()),
        regions(space, space.largest()),
        rolled_regions(space, space.smallest(), 5),
        rolled_regions(space, space.smallest(), -2),
    ):
        assert places(shared, region).tolist() == gather(numbered, region).astype(int).tolist()
