"""A ledger is what was written, or verification names the first entry that is not."""

import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from fedofa.server.contributions import Contribution, contributions
from fedofa.server.ledger import TORN, Ledger, RoundRecord, update_digest
from fedofa.server.ledger_chain import LEDGER, Chain, Verified, checked, lines, verify
from fedofa.server.ledger_entries import (
    CONTEXT,
    LedgerError,
    Round,
    Sealed,
    arch_digest,
    entry_of,
    link,
    signed_bytes,
    unseal,
)
from fedofa.server.ledger_keys import KEY, PUBLIC, PublicKey, SigningKey
from fedofa.server.ledger_report import as_rows, by_device, told, verdict
from fedofa.server.tables import table
from fedofa.supernet.errors import RunError, UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

ARCH = {"depth": 2, "expand": 3.0}
DEVICES = ("board-1", "board-2", "phone-1")


def weights(of: object) -> str:
    """Stands for the digest of some weights."""
    return hashlib.sha256(str(of).encode()).hexdigest()


def opened(folder: Path) -> Ledger:
    ticks = itertools.count(1000)
    return Ledger.open(folder, "tiny", clock=lambda: float(next(ticks)))


def record_of(before: object, devices: tuple[str, ...] = DEVICES) -> RoundRecord:
    """The first device's update is accepted, the second's refused; the others do not answer."""
    record = RoundRecord(weights(before))
    for device in devices:
        record.assign(device, ARCH, 1000)
    record.accept(devices[0], update_digest(np.arange(3, dtype=np.float32)), 12.0)
    if len(devices) > 1:
        record.refuse(devices[1], "norm")
    return record


def add_round(ledger: Ledger, round_: int, before: object = None, after: object = None) -> None:
    record = record_of(round_ - 1 if before is None else before)
    ledger.round(record, round_, weights(round_ if after is None else after), 0.5)


def written(folder: Path) -> Path:
    """Every kind of entry, and two superseded ones."""
    ledger = opened(folder)
    ledger.started(0, weights(0))
    add_round(ledger, 1)
    ledger.quarantined("board-2", 3, "norm")
    head = ledger.head
    ledger.abandoned(record_of(1), 2)
    add_round(ledger, 2, after="lost")
    ledger = opened(folder)
    ledger.resumed(1, weights(1), head)
    add_round(ledger, 2)
    ledger.released("board-2", "its term is over")
    return folder / LEDGER


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path)


def public(path: Path) -> PublicKey:
    return PublicKey.read(path.with_name(PUBLIC))


def checking(path: Path, head: str | None = None) -> Verified:
    return verify(path, public(path), head)


def failure(path: Path, head: str | None = None) -> tuple[int, str]:
    with pytest.raises(LedgerError) as caught:
        checking(path, head)
    assert f"entry {caught.value.entry}: {caught.value.problem}" in str(caught.value)
    return caught.value.entry, caught.value.problem


def kinds(path: Path) -> list[str]:
    return [json.loads(line)["body"]["kind"] for line in path.read_bytes().splitlines()]


def test_a_good_ledger_says_what_it_holds(path: Path) -> None:
    found = checking(path)
    assert kinds(path) == [
        "started", "round", "quarantined", "abandoned", "round", "resumed", "round", "released",
    ]  # fmt: skip
    assert found == Verified(
        entries=8, round=2, recorded=2, superseded=1, unrecorded=0, weights=weights(2),
        head=json.loads(path.read_bytes().splitlines()[-1])["hash"], key=public(path).text,
        after_head=None,
    )  # fmt: skip
    assert opened(path.parent).head == found.head


def test_the_format_is_what_its_description_says(path: Path) -> None:
    """Read with nothing but json, hashlib and a library for Ed25519."""
    key: Any = load_pem_public_key(path.with_name(PUBLIC).read_bytes())
    prev = "0" * 64
    for index, line in enumerate(path.read_text().splitlines()):
        whole = json.loads(line)
        assert line == json.dumps(whole, sort_keys=True, separators=(",", ":"))
        body = json.dumps(whole["body"], sort_keys=True, separators=(",", ":")).encode()
        hash_ = hashlib.sha256(bytes.fromhex(prev) + body)
        key.verify(bytes.fromhex(whole["signature"]), CONTEXT + hash_.digest())
        assert (whole["prev"], whole["hash"]) == (prev, hash_.hexdigest())
        assert whole["body"]["index"] == index
        prev = whole["hash"]


def test_an_entry_says_who_got_what_and_what_came_of_it(path: Path) -> None:
    sealed = unseal(path.read_bytes().splitlines(keepends=True)[1])
    assert sealed is not None
    entry = entry_of(sealed.body)
    assert isinstance(entry, Round)
    update = hashlib.sha256(np.arange(3, dtype="<f4").tobytes()).hexdigest()
    assert (entry.before, entry.after, entry.coverage) == (weights(0), weights(1), 0.5)
    assert list(entry.assigned) == list(DEVICES)
    assert entry.assigned["phone-1"].model_dump() == {
        "arch": hashlib.sha256(b'{"depth":2,"expand":3.0}').hexdigest(), "offset": 0, "macs": 1000,
    }  # fmt: skip
    assert {d: u.model_dump() for d, u in entry.accepted.items()} == {
        "board-1": {"sha256": update, "weight": 12.0}
    }
    assert (entry.refused, entry.missing) == ({"board-2": "norm"}, ("phone-1",))
    assert arch_digest({"b": 1, "a": 2}) == arch_digest({"a": 2, "b": 1})


def test_every_bit_of_every_entry_counts(path: Path) -> None:
    chain, key = Chain(path), public(path)
    for index, line in enumerate(lines(path)):
        for at, bit in itertools.product(range(len(line)), range(8)):
            changed = bytearray(line)
            changed[at] ^= 1 << bit
            with pytest.raises(LedgerError) as caught:
                chain.take(BytesIO(changed).readline(), key)
            assert caught.value.entry == index, (at, bit)
        chain.take(line, key)
    assert len(chain) == 8


def test_a_changed_byte_in_the_file_is_found_at_its_entry(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.started(0, weights(0))
    ledger.quarantined("a", 1, "norm")
    ledger.released("a", "over")
    path, key = tmp_path / LEDGER, public(tmp_path / LEDGER)
    whole = path.read_bytes()
    for at in range(len(whole)):
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << at % 8]), at)
            with pytest.raises(LedgerError) as caught:
                verify(path, key)
            assert caught.value.entry == whole[:at].count(b"\n")
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    assert verify(path, key).entries == 3


def test_a_removed_repeated_or_moved_line_is_found(path: Path) -> None:
    whole = path.read_bytes().splitlines(keepends=True)

    def with_lines(changed: list[bytes]) -> tuple[int, str]:
        path.write_bytes(b"".join(changed))
        return failure(path)

    for at in range(len(whole) - 1):
        assert with_lines(whole[:at] + whole[at + 1 :]) == (at, "order")
    for at in range(len(whole)):
        assert with_lines(whole[: at + 1] + whole[at:]) == (at + 1, "order")
        assert with_lines([*whole, whole[at]]) == (len(whole), "order")
    for a, b in itertools.combinations(range(len(whole)), 2):
        moved = list(whole)
        moved[a], moved[b] = moved[b], moved[a]
        assert with_lines(moved) == (a, "order")


def test_lines_of_two_copies_of_a_run_make_no_ledger(path: Path, tmp_path: Path) -> None:
    """Both are signed with the run's key, and each line has the number that its place wants."""
    copy = Path(shutil.copytree(tmp_path, tmp_path / "copy"))
    for folder, times in ((tmp_path, ("a", "b")), (copy, ("c", "d"))):
        ledger = opened(folder)
        for device in times:
            ledger.released(device, "over")
    mine, others = path.read_bytes(), (copy / LEDGER).read_bytes()
    path.write_bytes(b"".join(mine.splitlines(keepends=True)[:9]) + others.splitlines(True)[9])
    assert failure(path) == (9, "order")


def test_an_empty_line_or_garbage_at_the_end_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for rest, problem in ((b"\n", "form"), (b"{}\n", "form"), (b"x", "torn"), (b"\0" * 9, "torn")):
        path.write_bytes(whole + rest)
        assert failure(path) == (8, problem)
    path.write_bytes(b"")
    assert failure(path) == (0, "missing")


def test_only_a_hash_noted_elsewhere_shows_that_the_tail_was_cut(path: Path) -> None:
    whole = path.read_bytes().splitlines(keepends=True)
    head = json.loads(whole[-1])["hash"]
    assert checking(path, head).after_head == 0
    assert checking(path, json.loads(whole[4])["hash"]).after_head == 3
    for left in range(1, len(whole)):
        path.write_bytes(b"".join(whole[:left]))
        assert checking(path).entries == left
        assert failure(path, head) == (left, "missing")


def test_another_key_confirms_nothing(path: Path, tmp_path: Path) -> None:
    SigningKey.drawn().public.write(tmp_path / "other.pub")
    with pytest.raises(LedgerError, match="entry 0: signature"):
        verify(path, PublicKey.read(tmp_path / "other.pub"))


def test_who_has_the_key_still_cannot_leave_a_round_out_or_start_from_other_weights(
    path: Path,
) -> None:
    ledger = opened(path.parent)
    for bad, problem in (
        (lambda: add_round(ledger, 4), "round"),
        (lambda: add_round(ledger, 2), "round"),
        (lambda: ledger.abandoned(record_of(2), 2), "round"),
        (lambda: add_round(ledger, 3, before="others"), "weights"),
        (lambda: ledger.abandoned(record_of("others"), 3), "weights"),
    ):
        with pytest.raises(LedgerError) as caught:
            bad()
        assert caught.value.problem == problem
    assert checking(path).entries == 8  # none of them was written


def test_a_round_gives_each_assigned_device_one_end(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.started(0, weights(0))
    for spoil in (
        lambda r: r.refuse("board-1", "norm"),
        lambda r: r.refuse("stranger", "norm"),
        lambda r: r.suspect("board-2", "krum"),
    ):
        record = record_of(0)
        spoil(record)
        with pytest.raises(ValueError, match=r"are not"):
            ledger.round(record, 1, weights(1), 1.0)


# What a killed server leaves.


@pytest.mark.parametrize("left", [0, 1, 9, 100, -150, -2, -1])
@pytest.mark.parametrize("filling", [b"", b"\0"])
def test_a_torn_last_line_is_set_aside_and_the_rest_goes_on(
    path: Path, left: int, filling: bytes
) -> None:
    whole = path.read_bytes().splitlines(keepends=True)
    torn = whole[-1][:left]
    # After a power cut the file may have its full length, with holes in it.
    torn += filling * (len(whole[-1]) - len(torn))
    path.write_bytes(b"".join(whole[:-1]) + torn)
    if torn:
        assert failure(path) == (7, "torn")
    ledger = opened(path.parent)
    assert ledger.head == json.loads(whole[-2])["hash"]
    ledger.resumed(2, weights(2), ledger.head)
    ledger.released("board-2", "again")
    assert path.read_bytes().splitlines(keepends=True)[:7] == whole[:7]
    assert json.loads(path.read_bytes().splitlines()[7])["body"]["cut_bytes"] == len(torn)
    assert checking(path).entries == 9
    aside = path.with_name(TORN)
    assert (aside.read_bytes() if aside.exists() else b"") == (torn + b"\n" if torn else b"")


@pytest.mark.parametrize("end", [330, 200])
def test_a_last_line_with_a_hole_in_it_is_torn_too(path: Path, end: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: -end - 50] + b"\0" * 50 + whole[-end:])
    assert failure(path) == (7, "hash" if end == 330 else "form")
    opened(path.parent).resumed(2, weights(2))
    assert kinds(path)[-1] == "resumed"
    assert checking(path).entries == 8


def test_a_bad_entry_before_the_last_is_no_torn_line(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"norm", b"size", 1))
    with pytest.raises(LedgerError, match=r"entry 1: hash: .* move it aside"):
        opened(path.parent)
    changed = path.read_bytes()
    assert not path.with_name(TORN).exists()
    assert path.read_bytes() == changed


def test_an_entry_of_another_version_is_no_torn_line_either(path: Path) -> None:
    key = load_pem_private_key(path.with_name(KEY).read_bytes(), None)
    sealed = unseal(path.read_bytes().splitlines(keepends=True)[-1])
    assert sealed is not None
    body = sealed.body.replace(b'"released"', b'"forgiven"')
    hash_ = link(sealed.prev, body)
    signature: bytes = key.sign(signed_bytes(hash_))  # type: ignore[union-attr, call-arg]
    line = Sealed(body, hash_, sealed.prev, signature.hex()).line
    path.write_bytes(path.read_bytes()[: -len(sealed.line)] + line)
    assert failure(path) == (7, "body")
    with pytest.raises(LedgerError, match="entry 7: body"):
        opened(path.parent)


def test_opening_changes_nothing(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])
    before = path.read_bytes()
    opened(path.parent)
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_what_could_not_be_written_is_not_there_and_the_next_entry_is(
    path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, ledger = path.read_bytes(), opened(path.parent)
    real = os.write

    def full(handle: int, data: Any = b"") -> int:
        if step == "write" and len(data) > 100:
            return real(handle, data[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, full)
        with pytest.raises(RunError, match="No space left on device"):
            add_round(ledger, 3)
    assert path.read_bytes() == before
    add_round(ledger, 3)
    assert checking(path).round == 3


def test_a_second_writer_is_found_out(path: Path) -> None:
    one, other = opened(path.parent), opened(path.parent)
    one.released("a", "over")
    with pytest.raises(RunError, match="another process"):
        other.released("b", "over")
    assert checking(path).entries == 9


def test_a_round_without_its_checkpoint_is_superseded(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.started(0, weights(0))
    add_round(ledger, 1)
    head = ledger.head
    add_round(ledger, 2, after="lost")
    for noted in (head, None):  # as the checkpoint's notes say, or by the weights alone
        again = opened(tmp_path)
        again.resumed(1, weights(1), noted)
        assert checking(tmp_path / LEDGER).round == 1
    add_round(again, 2)
    found = checking(tmp_path / LEDGER)
    assert (found.recorded, found.superseded, found.unrecorded) == (2, 1, 0)


def test_a_checkpoint_without_its_round_is_said_to_be_unrecorded(tmp_path: Path) -> None:
    """The other order: the checkpoint was written first, its notes carry the head before."""
    ledger = opened(tmp_path)
    ledger.started(0, weights(0))
    add_round(ledger, 1)
    again = opened(tmp_path)
    again.resumed(2, weights(2), ledger.head)
    add_round(again, 3)
    found = checking(tmp_path / LEDGER)
    assert (found.round, found.recorded, found.superseded, found.unrecorded) == (3, 2, 0, 1)


def test_a_head_from_before_the_checkpoints_round_keeps_that_round(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.started(0, weights(0))
    add_round(ledger, 1)
    head = ledger.head
    add_round(ledger, 2)
    opened(tmp_path).resumed(2, weights(2), head)
    found = checking(tmp_path / LEDGER)
    assert (found.recorded, found.superseded, found.unrecorded) == (2, 0, 0)


def test_a_ledger_that_was_cut_is_not_gone_on_with(path: Path) -> None:
    head = checking(path).head
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="missing"):
        opened(path.parent).resumed(2, weights(2), head)
    with pytest.raises(LedgerError, match=r"weights: .* restore the ledger"):
        opened(path.parent).resumed(2, weights("others"))
    assert path.read_bytes() == before


def test_a_ledger_that_begins_late_says_what_it_follows(path: Path) -> None:
    """An operator moved it aside, or somebody removed it."""
    head = checking(path).head
    path.unlink()
    opened(path.parent).resumed(2, weights(2), head)
    assert json.loads(path.read_bytes())["body"]["follows"] == head
    found = checking(path)
    assert (found.round, found.recorded, found.unrecorded) == (2, 0, 2)


def test_a_run_that_begins_again_supersedes_all(path: Path) -> None:
    ledger = opened(path.parent)
    ledger.started(0, weights("another seed"))
    add_round(ledger, 1, before="another seed")
    found = checking(path)
    assert (found.recorded, found.superseded) == (1, 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=25))
def test_whatever_is_resumed_when_the_rounds_that_count_are_those_of_the_run(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int]
) -> None:
    """The model is a plain list of what a run's weights went through."""
    folder = tmp_path_factory.mktemp("run")
    ledger = opened(folder)
    ledger.started(0, weights(0))
    done: list[tuple[str, str, str]] = [("-", weights(0), ledger.head)]  # device, weights, head
    for number, step in enumerate(steps):
        before = done[-1][1]
        if step < 4:
            device = f"dev-{step}"
            record = RoundRecord(before)
            record.assign(device, ARCH, 1)
            record.accept(device, update_digest(np.zeros(1)), 1.0 + step)
            ledger.round(record, len(done), weights(("step", number)), 1.0)
            done.append((device, weights(("step", number)), ledger.head))
        elif step == 4:
            ledger.abandoned(RoundRecord(before), len(done))
        else:  # killed, and an older checkpoint is the newest whole one
            del done[max(1, len(done) - (step - 5)) :]
            ledger = opened(folder)
            ledger.resumed(len(done) - 1, done[-1][1], done[-1][2] if number % 2 else None)
    chain = checked(folder / LEDGER, public(folder / LEDGER))
    found = {one.device: one.accepted for one in contributions(chain)}
    devices = [device for device, _, _ in done[1:]]
    assert found == {device: devices.count(device) for device in set(devices)}
    assert chain.states[-1].round == len(done) - 1
    assert chain.states[-1].weights == done[-1][1]


CHILD = """
import json, os, sys, time
from pathlib import Path
from fedofa.protos import durable
from fedofa.server import ledger as module
assert "torch" not in sys.modules and "flwr" not in sys.modules
folder, write = Path(sys.argv[1]), os.write
def in_pieces(handle, data):  # so that a kill often falls between two
    time.sleep(0.0002)
    return write(handle, data[:16])
os.write = in_pieces
from hashlib import sha256
import numpy as np
ledger = module.Ledger.open(folder, "tiny")
state = {"round": 0, "weights": sha256(b"0").hexdigest(), "head": None}
checkpoint = folder / "checkpoint.json"
if checkpoint.exists():
    state = json.loads(checkpoint.read_bytes())
    ledger.resumed(state["round"], state["weights"], state["head"])
else:
    ledger.started(0, state["weights"])
while True:
    record = module.RoundRecord(state["weights"])
    record.assign("a", {"depth": 1}, 1)
    record.accept("a", module.update_digest(np.zeros(1)), 1.0)
    after = sha256(os.urandom(8)).hexdigest()
    ledger.round(record, state["round"] + 1, after, 1.0)
    state = {"round": state["round"] + 1, "weights": after, "head": ledger.head}
    durable.write(checkpoint, json.dumps(state).encode())
    print("done", flush=True)
"""


def test_a_run_that_is_killed_again_and_again_has_a_whole_ledger(tmp_path: Path) -> None:
    draw, torn = random.Random(5), 0
    for kills in range(1, 20):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "done\n"
        time.sleep(draw.uniform(0.01, 0.1))
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
        torn += not (tmp_path / LEDGER).read_bytes().endswith(b"\n")
        if kills >= 4 and torn >= 2:
            break
    state = json.loads((tmp_path / "checkpoint.json").read_bytes())
    opened(tmp_path).resumed(state["round"], state["weights"], state["head"])
    path = tmp_path / LEDGER
    found = checking(path, state["head"])
    assert (found.round, found.recorded) == (state["round"], state["round"])
    assert (found.weights, found.unrecorded) == (state["weights"], 0)
    [one] = contributions(checked(path, public(path)))
    assert one.accepted == state["round"]
    aside = path.with_name(TORN)
    assert aside.read_bytes().count(b"\n") == torn >= 2


# Keys.


def test_the_private_key_is_its_owners_alone(path: Path) -> None:
    assert path.with_name(KEY).stat().st_mode & 0o777 == 0o600
    path.with_name(KEY).chmod(0o640)
    with pytest.raises(UsageError, match=r"others may read it \(mode 640\)"):
        opened(path.parent)


def test_a_ledger_goes_on_with_its_own_key_only(path: Path) -> None:
    path.with_name(PUBLIC).unlink()
    opened(path.parent)  # half of the pair is enough
    assert checking(path).entries == 8
    path.with_name(KEY).unlink()
    assert checking(path).entries == 8
    with pytest.raises(UsageError, match="restore it, or move the ledger aside"):
        opened(path.parent)
    SigningKey.drawn().write(path.with_name(KEY))
    with pytest.raises(LedgerError, match="entry 0: signature"):
        opened(path.parent)


def test_a_file_that_is_no_key_is_refused_by_name(path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.pub: No such file or directory"):
        verdict(path, path.with_name("no.pub"))
    for bad in (b"", b"x" * 100, path.with_name(KEY).read_bytes()):
        path.with_name(PUBLIC).write_bytes(bad)
        with pytest.raises(UsageError, match=r"ledger\.pub is no PEM public key"):
            public(path)
    path.with_name(KEY).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"ledger\.key is damaged"):
        opened(path.parent)


# What each device gave.


def test_contributions_leave_superseded_rounds_out_and_add_up(path: Path) -> None:
    ledger = opened(path.parent)
    record = record_of(2, ("phone-1", "board-2"))
    record.suspect("phone-1", "krum")
    ledger.round(record, 3, weights(3), 0.5)
    for _ in range(2):  # tried again: one strike
        ledger.abandoned(record_of(3), 4)
    ledger.quarantined("board-2", 6, "norm")
    found = contributions(checked(path, public(path)))
    assert found == [
        Contribution("board-1", assigned=4, accepted=2, unused=2, weight=24.0, share=24 / 36),
        Contribution(
            "board-2", assigned=5, refused={"norm": 5}, strikes=4, quarantined=True, until_round=6
        ),
        Contribution(
            "phone-1", assigned=5, accepted=1, suspected={"krum": 1}, missing=4, strikes=1,
            weight=12.0, share=12 / 36,
        ),
    ]  # fmt: skip
    for one in found:
        ends = one.accepted + one.unused + one.missing + sum(one.refused.values())
        assert one.assigned == ends


def test_a_quarantine_ends_with_its_round_or_when_the_device_is_released(path: Path) -> None:
    def resting() -> list[str]:
        found = contributions(checked(path, public(path)))
        return [one.device for one in found if one.quarantined]

    ledger = opened(path.parent)
    ledger.quarantined("board-2", 4, "norm")
    ledger.quarantined("phone-1", 9, "krum")
    assert resting() == ["board-2", "phone-1"]
    add_round(ledger, 3)
    assert resting() == ["phone-1"]
    ledger.released("phone-1", "by hand")
    assert resting() == []


def test_what_each_device_gave_fits_a_terminal_of_80_columns(path: Path) -> None:
    opened(path.parent).quarantined("board-2", 16, "norm")
    rows = as_rows(by_device(path))
    assert [row["besides"] for row in rows] == [
        "", "refused norm 2, in quarantine until round 16", "missing 2",
    ]  # fmt: skip
    assert [row["share"] for row in rows] == ["100.0%", "0.0%", "0.0%"]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table(rows))
    text = console.export_text()
    assert "…" not in text
    for row in rows:
        (line,) = (line for line in text.splitlines() if row["device"] in line)
        assert all(str(row[key]) in line for key in ("asked", "good", "share"))


def test_a_good_ledger_is_told_in_a_sentence_and_without_zeros(path: Path) -> None:
    found = verdict(path)
    assert next(iter(told(found).items())) == ("whole", f"2 rounds, signed by {found['key']}")
    assert told(found)["superseded"] == found["superseded"] == 1
    assert "unrecorded" not in told(found)
    assert "expected_head" not in told(found)
    noted = told(verdict(path, head=found["head"]))
    assert noted["expected_head"] == "is there, 0 entries before the last"


def test_a_hash_that_was_never_there_need_not_mean_that_the_ledger_was_cut(path: Path) -> None:
    problem = verdict(path, head="ab" * 32)
    assert (problem["ok"], problem["problem"]) == (False, "missing")
    assert "another ledger's or was mistyped, or this ledger was cut short" in problem["detail"]


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    whole = [sys.executable, "-m", "fedofa.server.cli", *map(str, arguments)]
    return subprocess.run(
        whole, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "160"}
    )


def test_the_commands_say_what_is_so_and_end_with_its_exit_code(path: Path) -> None:
    head = checking(path).head
    good = command("verify", "--ledger", path.parent, "--head", head, "--json")
    assert (good.returncode, json.loads(good.stdout)["after_head"]) == (0, 0)
    rows = command("contributions", "--ledger", path)
    assert rows.returncode == 0, rows.stderr
    assert "norm 2" in rows.stdout, rows.stdout
    assert [line.split("│")[1].strip() for line in rows.stdout.splitlines() if "│" in line] == list(
        DEVICES
    )
    wrong = command("verify", "--ledger", path, "--head", head[:8])
    assert (wrong.returncode, "64 hex digits" in wrong.stderr) == (2, True)
    path.write_bytes(path.read_bytes().replace(b"norm", b"size", 1))
    bad = command("verify", "--ledger", path, "--json")
    told = json.loads(bad.stdout)
    assert (bad.returncode, told["ok"], told["entry"], told["problem"]) == (1, False, 1, "hash")
    bad = command("contributions", "--ledger", path)
    assert (bad.returncode, "entry 1: hash" in bad.stderr, bad.stdout) == (1, True, "")


# Cost.


def large(ledger: Ledger, round_: int) -> float:
    """CPU seconds of entering a round of 1000 clients."""
    record = RoundRecord(weights(round_ - 1))
    begin = time.process_time()
    for number in range(1000):
        record.assign(f"device-{number:04d}", {f"gene.{gene}": gene for gene in range(20)}, 10**6)
        record.accept(f"device-{number:04d}", update_digest(np.zeros(4, np.float32)), 1.0)
    ledger.round(record, round_, weights(round_), 1.0)
    return time.process_time() - begin


def test_a_round_of_1000_clients_costs_little_time_and_memory(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.started(0, weights(0))
    assert min(large(ledger, round_) for round_ in range(1, 6)) < 0.2
    path = tmp_path / LEDGER

    def peak_bytes(work: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    key = public(path)
    few = peak_bytes(lambda: checked(path, key))
    for round_ in range(6, 16):
        large(ledger, round_)
    assert peak_bytes(lambda: checked(path, key)) < few + 200_000


def test_nothing_is_left_open(path: Path) -> None:
    handles: Callable[[], Iterator[Path]] = Path("/proc/self/fd").iterdir
    before = len(list(handles()))
    ledger = opened(path.parent)
    add_round(ledger, 3)
    checking(path)
    assert len(list(handles())) == before
