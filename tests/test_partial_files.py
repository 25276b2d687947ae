"""Partial sums as files: they merge to what a flat merge says, and a stranger's file is refused."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.server.aggregation import partial_file
from fedofa.server.aggregation.overlap_mean import OverlapMean
from fedofa.server.aggregation.partial_file import MAGIC, Origin, Parcel
from fedofa.server.aggregation.update import Update
from fedofa.server.cli import app
from fedofa.server.partials import Merge, merge_files
from fedofa.supernet.errors import ArtifactError, UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from updates import SHAPES, dense, folded, updates, whole

ORIGIN = Origin(space="a" * 64, run="night", round=3)
HEAD_AT = len(MAGIC) + 8


def parcel(found: Sequence[Update], dtype: torch.dtype = torch.float64) -> Parcel:
    mean = OverlapMean(SHAPES, dtype)
    for update in found:
        mean.add(update)
    return Parcel.of(ORIGIN, SHAPES, frozenset(u.device for u in found), mean.partial())


def written(path: Path, found: Parcel) -> Path:
    partial_file.write(path, found)
    return path


def result_of(found: Parcel) -> dict[str, bytes]:
    """The merged change's bytes, tensor by tensor."""
    mean = OverlapMean(found.shapes, found.partial.total.dtype)
    mean.add_partial(found.partial)
    return {name: value.numpy().tobytes() for name, value in mean.result().delta.items()}


def flat_bytes(found: Sequence[Update]) -> dict[str, bytes]:
    merged = folded(OverlapMean(SHAPES, torch.float64), found)
    return {name: value.numpy().tobytes() for name, value in merged.delta.items()}


@given(found=updates(least=2), data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_tree_of_files_in_any_order_gives_the_bits_of_the_flat_merge(
    tmp_path_factory: pytest.TempPathFactory, found: list[Update], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    rng = random.Random(data.draw(st.integers(0, 2**32 - 1)))
    shuffled = rng.sample(found, len(found))
    parts = [
        written(folder / f"leaf-{place}", parcel([update])) for place, update in enumerate(shuffled)
    ]
    while len(parts) > 1:  # merge some of them until one is left: every tree is possible
        chosen = rng.sample(parts, data.draw(st.integers(2, len(parts))))
        out = folder / f"node-{len(list(folder.iterdir()))}"
        merge_files(chosen, out)
        parts = [path for path in parts if path not in chosen] + [out]
    top = partial_file.read(parts[0])
    assert result_of(top) == flat_bytes(found)
    assert top.updates == {u.device for u in found}
    assert top.partial.updates == len(found)
    assert top.partial.weight == pytest.approx(sum(u.weight for u in found), rel=1e-6)


def test_float64_sums_are_exact_where_plain_ones_hang_on_their_order() -> None:
    """What the claim of equal bits rests on, on values enough to tell."""
    rng = np.random.default_rng(0)
    found = [
        whole(f"d{k}", {"w": rng.normal(size=40_000) * 1e-3}, float(rng.uniform(10, 900)))
        for k in range(30)
    ]

    def total(order: list[Update]) -> Any:
        mean = OverlapMean({"w": (40_000,)}, torch.float64)
        for update in order:
            mean.add(update)
        return mean.partial().total.numpy()

    def plain(order: list[Update]) -> Any:
        return sum(update.weight * update.delta.astype(np.float64) for update in order)

    assert np.array_equal(total(found), total(found[::-1]))
    assert not np.array_equal(plain(found), plain(found[::-1]))
    np.testing.assert_allclose(total(found), plain(found), rtol=1e-6, atol=1e-4)


@given(found=updates(), wide=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, found: list[Update], wide: bool
) -> None:
    sent = parcel(found, torch.float64 if wide else torch.float32)
    back = partial_file.read(written(tmp_path_factory.mktemp("one") / "a.partial", sent))
    assert torch.equal(back.partial.total, sent.partial.total)
    assert back.partial.total.dtype == sent.partial.total.dtype
    assert dict(back.partial.counted) == dict(sent.partial.counted)
    assert replace(back, partial=sent.partial) == sent
    trained = [np.isfinite(dense(found, name)[0]).any(axis=0).sum() for name in SHAPES]
    assert partial_file.values_trained(back) == sum(trained)


A = whole("a", {"v": [1.0] * 6}, 2.0)
B = whole("b", {"v": [4.0] * 6}, 1.0)
C = whole("c", {"v": [-2.0] * 6}, 1.0)


def test_a_sum_that_is_delivered_twice_counts_once(tmp_path: Path) -> None:
    one = written(tmp_path / "one", parcel([A, B]))
    both = written(tmp_path / "both", parcel([A]))
    other = written(tmp_path / "other", parcel([C]))
    told = merge_files([one, other, one, both], tmp_path / "out")
    assert told["delivered_twice"] == [str(one), str(both)]
    assert told["updates"] == ["a", "b", "c"]
    assert (told["weight"], told["values"], told["values_trained"]) == (4.0, 29, 6)
    assert result_of(partial_file.read(tmp_path / "out")) == flat_bytes([A, B, C])


def test_sums_that_share_some_updates_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    paths = [written(tmp_path / "1", parcel([A, B])), written(tmp_path / "2", parcel([B, C]))]
    with pytest.raises(UsageError, match=r"2: 1 of 2 updates are in another .* \(b\)"):
        merge_files(paths, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"origin": ORIGIN.model_copy(update={"space": "b" * 64})}, "it is of space b"),
        ({"origin": ORIGIN.model_copy(update={"run": "day"})}, "it is of run day; .* night"),
        ({"origin": ORIGIN.model_copy(update={"round": 4})}, "it is of round 4; .* 3"),
        ({"shapes": {"v": (6,), "w": (5, 4), "unused": (3,)}}, "shared tensors are not those"),
        ({"partial": parcel([B], torch.float32).partial}, "sums are torch.float32; .*float64"),
    ],
)
def test_sums_of_other_weights_do_not_go_together(change: dict[str, Any], words: str) -> None:
    merge = Merge(parcel([A]))
    with pytest.raises(UsageError, match=words):
        merge.add(replace(parcel([B]), **change))


def with_head(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """The file with another head, its length and its digest right again."""

    def make(data: bytes) -> bytes:
        end = HEAD_AT + int.from_bytes(data[len(MAGIC) : HEAD_AT], "little")
        head = json.loads(data[HEAD_AT:end])
        change(head)
        text = json.dumps(head).encode()
        return sealed(MAGIC + len(text).to_bytes(8, "little") + text + data[end:-32])

    return make


def sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def with_values(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def make(data: bytes) -> bytes:
        values = np.frombuffer(data[-32 - 29 * 8 : -32], "<f8").copy()
        change(values)
        return sealed(data[: -32 - 29 * 8] + values.tobytes())

    return make


def run(start: int, stop: int) -> dict[str, int]:
    return {"start": start, "stop": stop}


BAD: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty", lambda d: b"", "cut short"),
    ("other", lambda d: b"x" * len(d), "no partial sum"),
    ("cut", lambda d: d[:-1], "its head says"),
    ("longer", lambda d: d + b"x", "its head says"),
    ("flipped", lambda d: d[:-40] + bytes([d[-40] ^ 1]) + d[-39:], "sha256"),
    ("head", lambda d: MAGIC + (2**63).to_bytes(8, "little") + d[HEAD_AT:], "a head of"),
    ("text", lambda d: sealed(MAGIC + (4).to_bytes(8, "little") + b"abcd"), "head: Invalid JSON"),
    ("vast", with_head(lambda h: h["shapes"].update(w=[2**31, 2**31])), "at most 4294967296"),
    ("larger", with_head(lambda h: h["shapes"].update(w=[50, 4])), "its head says"),
    ("unknown", with_head(lambda h: h["counted"].update(z=[])), "no tensor 'z'"),
    ("field", with_head(lambda h: h.update(more=1)), "more: Extra inputs"),
    ("dtype", with_head(lambda h: h.update(dtype="float16")), "dtype: "),
    ("weight", with_head(lambda h: h.update(weight=0.0)), "weight: "),
    ("nan weight", with_head(lambda h: h.update(weight=float("nan"))), "weight|head: "),
    ("twice", with_head(lambda h: h.update(updates=["a", "a"])), "named twice"),
    ("id", with_head(lambda h: h.update(updates=["a\n"])), "updates.0: "),
    ("none", with_head(lambda h: h.update(updates=[])), "updates: "),
    ("round", with_head(lambda h: h["origin"].update(round="3")), "origin.round: "),
    ("outside", with_head(lambda h: h["counted"]["v"][0].update(region=[run(0, 7)])), "outside 'v'"),
    ("backwards", with_head(lambda h: h["counted"]["v"][0].update(region=[run(3, 2)])), "outside"),
    ("dims", with_head(lambda h: h["counted"]["v"][0].update(region=[])), "outside"),
    ("repeated", with_head(lambda h: h["counted"]["v"][0].update(region=[[1, 1]])), "outside"),
    ("negative", with_head(lambda h: h["counted"]["v"][0].update(region=[[-1]])), "counted.v.0"),
    ("nan", with_values(lambda v: v.__setitem__(20, np.nan)), "no number"),
    ("infinite", with_values(lambda v: v.__setitem__(20, -np.inf)), "no number"),
    ("elsewhere", with_values(lambda v: v.__setitem__(0, 1.0)), "that no update trained is not 0"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_file_that_is_no_partial_sum_is_refused(
    tmp_path: Path, make: Callable[[bytes], bytes], words: str
) -> None:
    path = written(tmp_path / "a", parcel([A]))
    path.write_bytes(make(path.read_bytes()))
    with pytest.raises(ArtifactError, match=words) as error:
        partial_file.read(path)
    assert str(error.value).count("\n") == 0


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_changed_byte_is_seen_wherever_it_is(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("flip") / "a", parcel([A, B]))
    held = bytearray(path.read_bytes())
    held[data.draw(st.integers(0, len(held) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(held)
    with pytest.raises(ArtifactError):
        partial_file.read(path)


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "a", parcel([A]))
    before = (tmp_path / "a").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partial_file.durable, "move", full)
    with pytest.raises(OSError, match="No space"):
        partial_file.write(tmp_path / "a", parcel([A, B]))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == before


def test_the_command_merges_and_shows_and_says_what_does_not_go(tmp_path: Path) -> None:
    def fedofa(*words: str) -> Any:
        return CliRunner().invoke(app, ["partial", *words])

    for name, found in {"a": [A], "b": [B, C], "x": [A, C]}.items():
        written(tmp_path / name, parcel(found))
    places = [str(tmp_path / name) for name in ("a", "b")]
    out = str(tmp_path / "c.partial")
    assert fedofa("merge", *places, "--out", out).exit_code == 0
    told = json.loads(fedofa("show", out, "--json").stdout)
    assert (told["run"], told["round"], told["updates"]) == ("night", 3, ["a", "b", "c"])
    assert "updates: 3 (a, b, c)" in fedofa("show", out).stdout
    again = fedofa("merge", *places, "--out", out).exception
    assert isinstance(again, UsageError)
    assert "exists; name a new file" in str(again)
    refused = fedofa("merge", places[0], str(tmp_path / "x"), "--out", str(tmp_path / "d"))
    assert isinstance(refused.exception, UsageError)
    missing = fedofa("show", str(tmp_path / "none")).exception
    assert isinstance(missing, ArtifactError)
    assert "cannot be read: No such file" in str(missing)
