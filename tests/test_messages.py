"""Messages come back as they went; a stranger's message is refused with one kind of error."""

import gc
import io
import json
import math
import pickle
import random
import weakref
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fedofa.protos import flower, messages
from fedofa.protos.codec.config import PRESETS as CODECS
from fedofa.protos.flower import BODY, DTYPE, JSON, VALUES, from_record, to_record
from fedofa.protos.holding import MOST_HELD, Held, Holding
from fedofa.protos.manifest import FILE_NAMES, FileEntry, FileKind, Normalization, TensorSpec
from fedofa.protos.messages import Body, EvaluateReply, MessageError, TrainReply
from fedofa.protos.recipe import Recipe
from fedofa.protos.subnets import flat_statistics, grouped, pack, unpack
from fedofa.supernet.axes import regions, take
from fedofa.supernet.batchnorm import Moments
from fedofa.supernet.cost import cost
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.subnet import batch_norms
from fedofa.supernet.weights import digest, initial, shapes_of, size_of
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DIGITS, archs_of, some_space

SPEC = TensorSpec(name="x", shape=(1, 8), dtype="int8", scale=0.5, zero_point=-3)
KIND: FileKind = get_args(FileKind)[0]
ENTRY = FileEntry(
    kind=KIND, name=FILE_NAMES[KIND], size_bytes=9, sha256="0" * 64, inputs=(SPEC,), outputs=(SPEC,)
)
ARCH = {"depth": 2, "width": 0.5}
GROUPS = (messages.SubnetGroup(hull=ARCH, offset=0, archs=(ARCH, {"depth": 1, "width": 0.5})),)
HELD = Held(round=2, digest="0123456789abcdef" * 4)
SPACE: dict[str, object] = {"family": "x", "widths": [1, 2], "nested": {"a": None, "b": [1.5]}}
TENSORS = (("w", (2, 3)), ("scalar", ()))
BODIES: list[Body] = [
    messages.DeviceProfile(
        device="phone-1",
        device_class="phone",
        cores=2,
        memory_bytes=10**9,
        train_macs_per_s=1.5e9,
        infer_macs_per_s=3e9,
        budget={"macs": 5},
        runtimes=("onnxruntime",),
        examples=100,
        validation_examples=0,
        input_shape=(1, 8, 8),
        classes=("a", "b"),
        normalization=Normalization(mean=(0.5,), std=(0.25,)),
        holds=(HELD,),
    ),
    messages.ProfileRequest(space=SPACE),
    messages.TrainRequest(
        run="r", round=1, seed=-3, lr=0.1, deadline_s=1e3, space=SPACE, arch=ARCH,
        recipe=Recipe(steps=3, clip_norm=1.0), tensors=TENSORS,
    ),
    messages.TrainReply(
        run="r", round=1, device="d", arch=ARCH, examples=5, steps=2, loss=0.5, train_macs=10**12,
        seconds=0.1, tensors=TENSORS, holds=(HELD, HELD),
    ),
    messages.MomentsRequest(space=SPACE, batch_size=2, groups=GROUPS),
    messages.MomentsReply(device="d", counts=({"stem.bn": 7}, {})),
    messages.EvaluateRequest(space=SPACE, batch_size=1, groups=GROUPS),
    messages.EvaluateReply(device="d", examples=9, correct=(3, 9)),
    messages.RangesRequest(max_examples=5, files=((KIND, (1, 8, 8), 99),)),
    messages.RangesReply(device="d", examples=3, ranges=({"a0": (-1.0, 2.5)}, {})),
    messages.VerifyRequest(
        space=SPACE, items=(messages.VerifyItem(arch=ARCH, values=3, files=(ENTRY,)),)
    ),
    messages.VerifyReply(
        device="d",
        examples=4,
        verdicts=(
            messages.Verdict(
                reference_correct=2,
                correct=(1,),
                agree=(4,),
                max_difference=(math.inf,),
                latency_s=(0.002,),
            ),
        ),
    ),
    messages.InputsRequest(
        space=SPACE, batch_size=1, max_examples=9, groups=GROUPS, kernels=(("stem.weight",), ())
    ),
    messages.InputsReply(device="d", examples=9),
]  # fmt: skip
FLOATS = np.arange(5, dtype=np.float32)


def test_every_kind_of_message_is_in_the_list() -> None:
    kinds = {
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, Body) and kind is not Body
    }
    assert {type(body) for body in BODIES} == kinds


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", None])
def test_a_message_comes_back_as_it_went(body: Body, dtype: str | None) -> None:
    values = None if dtype is None else np.arange(100).astype(dtype)
    back, array = from_record(type(body), to_record(body, values))
    assert back == body
    if values is None:
        assert array is None
    else:
        assert array is not None
        assert array.dtype == values.dtype
        assert np.array_equal(array, values)
        assert array.flags.writeable


@given(
    st.one_of(
        st.binary(max_size=40).map(lambda data: np.frombuffer(data, np.uint8)),
        st.lists(st.floats(width=32), max_size=9).map(lambda v: np.array(v, np.float32)),
        st.lists(st.floats(), max_size=9).map(lambda v: np.array(v, np.float64)),
    )
)
def test_values_of_any_kind_keep_their_bytes(values: np.ndarray) -> None:
    _, back = from_record(EvaluateReply, to_record(BODIES[7], values))
    assert back is not None
    assert (back.dtype, back.tobytes()) == (values.dtype, values.tobytes())


def test_a_message_that_was_read_is_gone_with_its_last_reference() -> None:
    record = to_record(BODIES[7], np.arange(8, dtype=np.float32))
    seen = weakref.ref(record)
    gc.disable()  # a round's messages must not add up until the next collection
    try:
        from_record(EvaluateReply, record)
        del record
        assert seen() is None
    finally:
        gc.enable()


def test_a_loss_that_is_no_number_arrives_as_one() -> None:
    fields = BODIES[3].model_dump()
    for loss in (math.nan, math.inf):
        body = TrainReply(**{**fields, "loss": loss})
        assert str(from_record(TrainReply, to_record(body))[0].loss) == str(loss)


# ── bodies that no honest sender writes ──────────────────────────────────────────────────────────


def refused(kind: type[Body], record: RecordDict) -> str:
    with pytest.raises(MessageError) as error:
        from_record(kind, record)
    assert str(error.value).count("\n") <= 1
    return str(error.value)


def with_json(text: Any) -> RecordDict:
    return RecordDict({BODY: ConfigRecord({"json": text})})


def mutations(value: Any) -> list[Any]:
    """Other JSON values of another type than this one's."""
    others: list[Any] = [None, True, "1", 1.5, -1, [], {}, [[]], {"a": {}}, 10**30, "\x00"]
    return [other for other in others if type(other) is not type(value)]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_body_with_a_field_missing_added_or_of_another_type_is_refused(body: Body) -> None:
    fields = json.loads(body.to_json())
    kind = type(body)
    assert "surplus" in refused(kind, with_json(json.dumps({**fields, "surplus": 1})))
    for name, value in fields.items():
        info = kind.model_fields[name]
        rest = {key: other for key, other in fields.items() if key != name}
        if info.is_required():
            assert name in refused(kind, with_json(json.dumps(rest)))
        for other in mutations(value):
            if isinstance(value, int | float) and isinstance(other, int | float):
                continue  # numbers of another size are for the checks of values
            if name == "space" or (value is None and other in (10**30, -1)):
                continue
            text = json.dumps({**rest, name: other})
            if isinstance(other, list | dict | str):  # another content may be a right one
                _only_message_error(kind, text)
            else:
                assert name in refused(kind, with_json(text))


@pytest.mark.parametrize(
    "change",
    [
        {"examples": 0},
        {"examples": 10**400},
        {"examples": 1.0},
        {"examples": "5"},
        {"examples": True},
        {"memory_bytes": 10**30},
        {"train_macs_per_s": 0},
        {"train_macs_per_s": math.inf},
        {"train_macs_per_s": math.nan},
        {"train_macs_per_s": 1e300},
        {"device": "../../etc"},
        {"device": "a b"},
        {"device": "a\n"},
        {"device": ""},
        {"device": "x" * 65},
        {"device_class": "a/b"},
        {"input_shape": [-1]},
        {"budget": {"macs": 1.5}},
        {"budget": {"latency_ms": -1.5}},
        {"budget": {"latency_ms": float("inf")}},
        {"normalization": {"mean": [0.0]}},
    ],
)
def test_a_profile_with_impossible_numbers_or_names_is_refused(change: dict[str, object]) -> None:
    fields = {**json.loads(BODIES[0].to_json()), **change}
    assert next(iter(change)) in refused(type(BODIES[0]), with_json(json.dumps(fields)))


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({"json": "{}"})}),
        RecordDict({BODY: ConfigRecord({"text": "{}"})}),
        RecordDict({BODY: ConfigRecord({"json": b"{}"})}),
        RecordDict({BODY: ConfigRecord({"json": 3})}),
        RecordDict({BODY: ConfigRecord({"json": ["{}"]})}),
        RecordDict({BODY: MetricRecord({"json": 1})}),
        RecordDict({BODY: ArrayRecord({"json": Array(FLOATS)})}),
        RecordDict({BODY: ConfigRecord({"json": "{}"}), "b": ConfigRecord({"json": "{}"})}),
    ],
)
def test_a_record_without_one_body_is_refused(record: RecordDict) -> None:
    refused(EvaluateReply, record)


HOSTILE_TEXT = [
    "",
    "null",
    "[]",
    "{",
    "\x00",
    "{}" * 2,
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"device": "d", "examples": 1, "correct": [], "device": 3}',
    '{"device": "\ud800", "examples": 1, "correct": []}',
    '{"device": "d", "examples": ' + "9" * 5000 + ', "correct": []}',
    '{"device": "d", "examples": 1, "correct": [' + "1e999," * 3 + "1]}",
]


@pytest.mark.parametrize("text", HOSTILE_TEXT, ids=range(len(HOSTILE_TEXT)))
def test_text_that_is_no_body_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        EvaluateReply.from_json(text)


@given(st.sampled_from(BODIES), st.data())
@settings(max_examples=150)
def test_a_changed_text_is_refused_or_read_and_nothing_else(
    body: Body, data: st.DataObject
) -> None:
    text = body.to_json()
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 8)))
    junk = data.draw(st.one_of(st.text(max_size=6), st.sampled_from(['"', "{", "[", "-", "1e9"])))
    _only_message_error(type(body), text[:begin] + junk + text[end:])


@given(
    st.sampled_from(BODIES),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=8,
    ),
    st.data(),
)
def test_a_changed_field_is_refused_or_read_and_nothing_else(
    body: Body, value: object, data: st.DataObject
) -> None:
    fields = json.loads(body.to_json())
    fields[data.draw(st.sampled_from(sorted(fields)))] = value
    _only_message_error(type(body), json.dumps(fields))


def _only_message_error(kind: type[Body], text: str) -> None:
    try:
        body = kind.from_json(text)
    except MessageError:
        return
    assert kind.from_json(body.to_json()).to_json() == body.to_json()


# ── arrays that no honest sender writes ──────────────────────────────────────────────────────────


class Bomb:
    """Unpickling it marks the class: a test sees that it happened."""

    exploded = False

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _explode, ()


def _explode() -> None:
    Bomb.exploded = True


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def with_array(dtype: object, data: object) -> RecordDict:
    fields: Any = {DTYPE: dtype, VALUES: data}
    return RecordDict({BODY: ConfigRecord({JSON: BODIES[7].to_json(), **fields})})


PAYLOAD = FLOATS.tobytes()
HOSTILE_ARRAYS: list[tuple[object, object]] = [
    ("object", npy(np.array([Bomb()], dtype=object))),
    ("object", pickle.dumps(Bomb())),
    ("|O", PAYLOAD),
    ("float16", PAYLOAD),
    ("int64", PAYLOAD),
    ("complex64", PAYLOAD),
    (">f4", PAYLOAD),
    ("<f4", PAYLOAD),
    ("f4,O", PAYLOAD),
    ("", PAYLOAD),
    (b"float32", PAYLOAD),
    (32, PAYLOAD),
    (["float32"], PAYLOAD),
    ("float32", PAYLOAD[:-1]),
    ("float32", PAYLOAD + b"\0"),
    ("float64", PAYLOAD),
    ("float32", PAYLOAD.decode("latin1")),
    ("float32", 5),
    ("float32", [1.0, 2.0]),
]


@pytest.mark.parametrize(("dtype", "data"), HOSTILE_ARRAYS, ids=range(len(HOSTILE_ARRAYS)))
def test_an_array_that_is_not_what_it_says_is_refused(dtype: object, data: object) -> None:
    refused(EvaluateReply, with_array(dtype, data))


def test_bytes_that_would_run_code_are_numbers_and_nothing_else() -> None:
    bomb = pickle.dumps(Bomb())
    bomb += bytes(-len(bomb) % 4)
    _, values = from_record(EvaluateReply, with_array("float32", bomb))
    assert values is not None
    assert values.tobytes() == bomb
    assert not Bomb.exploded
    pickle.loads(bomb)
    assert Bomb.exploded


@pytest.mark.parametrize(
    "change",
    [
        {"other": ConfigRecord({VALUES: PAYLOAD})},
        {"values-2": ConfigRecord({VALUES: PAYLOAD})},
        {"values-1": ConfigRecord({"other": PAYLOAD})},
        {"values-1": ConfigRecord({VALUES: "text"})},
        {"values-1": MetricRecord({VALUES: 1})},
        {"values-1": ArrayRecord({VALUES: Array(FLOATS)})},
        {BODY: ConfigRecord({JSON: BODIES[7].to_json(), DTYPE: "float32"})},
        {BODY: ConfigRecord({JSON: BODIES[7].to_json(), VALUES: PAYLOAD})},
        {
            BODY: ConfigRecord(
                {JSON: BODIES[7].to_json(), DTYPE: "float32", VALUES: PAYLOAD, "a": 1}
            )
        },
    ],
    ids=range(9),
)
def test_parts_under_other_names_or_of_other_kinds_are_refused(change: dict[str, Any]) -> None:
    record = with_array("float32", PAYLOAD)
    for name, part in change.items():
        record[name] = part
    refused(EvaluateReply, record)


def test_parts_without_a_first_one_are_refused() -> None:
    record = to_record(BODIES[7])
    record["values-1"] = ConfigRecord({VALUES: PAYLOAD})
    refused(EvaluateReply, record)


@given(st.sampled_from(["float32", "float64", "uint8"]), st.integers(0, 70), st.integers(8, 64))
def test_an_array_of_any_length_comes_back_whatever_the_size_of_its_parts(
    dtype: str, length: int, part_bytes: int
) -> None:
    values: Any = np.random.default_rng(length).integers(0, 200, length).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower, "PART_BYTES", part_bytes)
        record = to_record(BODIES[7], values)
    sizes = [len(part[VALUES]) for part in record.config_records.values()]  # type: ignore[arg-type]
    assert len(sizes) == max(1, -(-values.nbytes // part_bytes))
    assert max(sizes) <= part_bytes
    _, back = from_record(EvaluateReply, record)
    assert back is not None
    assert back.dtype == values.dtype
    assert back.flags.writeable
    np.testing.assert_array_equal(back, values)


# ── several subnets in one array ─────────────────────────────────────────────────────────────────


@st.composite
def packed_subnets(draw: st.DrawFn) -> tuple[Space, list[Arch], int | None]:
    space = draw(some_space)
    archs = draw(st.lists(archs_of(space), min_size=1, max_size=4, unique=True))
    limit = draw(st.sampled_from((None, 0, max(cost(space, arch).params for arch in archs))))
    return space, archs, limit


def made_up_statistics(space: Space, arch: Arch, seed: int) -> dict[str, Moments]:
    rng = np.random.default_rng(seed)
    with torch.device("meta"):
        layers = batch_norms(space.build(arch))
    found = {}
    for name, layer in layers.items():
        mean, variance = rng.normal(size=layer.num_features), rng.random(layer.num_features) + 0.1
        found[name] = Moments(10, 10 * mean, 10 * (variance + mean**2))
    return found


@given(packed_subnets(), st.booleans(), st.integers(0, 99))
@settings(max_examples=20)
def test_packed_subnets_come_back_as_the_modules_they_are(
    drawn: tuple[Space, list[Arch], int | None], with_statistics: bool, seed: int
) -> None:
    space, archs, limit = drawn
    shared = initial(space, seed)
    statistics = [made_up_statistics(space, a, seed + i) for i, a in enumerate(archs)]
    groups = grouped(space, archs, limit)
    assert [arch for group in groups for arch in group] == archs
    described, flat = pack(space, shared, groups, statistics if with_statistics else None)
    body = messages.EvaluateRequest(space={}, batch_size=1, groups=described)
    back, values = from_record(type(body), to_record(body, flat))
    assert values is not None
    found = list(unpack(space, back.groups, values, with_statistics=with_statistics))  # type: ignore[arg-type]
    assert [arch for arch, _ in found] == archs
    for (arch, module), theirs in zip(found, statistics, strict=True):
        mine = take(shared, regions(space, arch))
        assert digest(dict(module.named_parameters())) == digest(mine)
        for name, layer in batch_norms(module).items():
            assert layer.running_mean is not None
            assert layer.running_var is not None
            if with_statistics:
                mean, variance = theirs[name].mean, theirs[name].variance
                np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(layer.running_var, variance, rtol=1e-5, atol=1e-6)


@given(packed_subnets())
@settings(max_examples=20)
def test_no_group_is_larger_than_the_device_may_hold(
    drawn: tuple[Space, list[Arch], int | None],
) -> None:
    space, archs, limit = drawn
    groups = grouped(space, archs, limit)
    for group in groups:
        hull = group[0]
        for arch in group[1:]:
            hull = space.hull(hull, arch)
        assert limit is None or len(group) == 1 or cost(space, hull).params <= limit
    if limit is None:
        assert len(groups) == 1


def packed(with_statistics: bool) -> tuple[tuple[messages.SubnetGroup, ...], Any]:
    rng = random.Random(0)
    archs = [DIGITS.smallest(), DIGITS.sample(rng), DIGITS.largest()]
    statistics = [made_up_statistics(DIGITS, arch, 0) for arch in archs]
    groups = [archs[:2], archs[2:]]
    return pack(DIGITS, initial(DIGITS, 0), groups, statistics if with_statistics else None)


@pytest.mark.parametrize("with_statistics", [False, True])
@pytest.mark.parametrize("change", ["empty", "short", "shorter", "long", "offset", "far"])
def test_an_array_too_short_or_too_long_for_its_subnets_is_refused(
    change: str, with_statistics: bool
) -> None:
    groups, flat = packed(with_statistics)
    if change in ("offset", "far"):
        moved = 1 if change == "offset" else 10**12
        last = groups[-1].model_copy(update={"offset": groups[-1].offset + moved})
        groups = (*groups[:-1], last)
        flat = flat[: size_of(shapes_of(regions(DIGITS, DIGITS.largest()))) + groups[0].offset + 9]
    else:
        sizes = {"empty": 0, "short": len(flat) - 1, "shorter": len(flat) // 2}
        flat = np.append(flat, flat[:1]) if change == "long" else flat[: sizes[change]]
    with pytest.raises(MessageError):
        list(unpack(DIGITS, groups, flat, with_statistics=with_statistics))


def test_statistics_are_missing_where_none_came_along() -> None:
    groups, flat = packed(with_statistics=False)
    with pytest.raises(MessageError, match="statistics"):
        list(unpack(DIGITS, groups, flat, with_statistics=True))


def test_statistics_travel_as_mean_then_variance() -> None:
    moments = {"a": Moments(2, np.array([2.0, 4.0]), np.array([4.0, 8.0]))}
    assert flat_statistics(moments).tolist() == [1, 2, 1, 0]
    assert flat_statistics(moments).dtype == np.float32


def test_noise_travels_without_a_codec_only() -> None:
    asked = next(body for body in BODIES if isinstance(body, messages.TrainRequest))
    noise = messages.OwnNoise(clip=0.5, std=1.5)
    found = asked.model_copy(update={"noise": noise})
    assert messages.TrainRequest.from_json(found.to_json()) == found
    coded = found.model_copy(update={"codec": CODECS["exact"]})
    assert "noise does not go with a codec" in refused(type(coded), with_json(coded.to_json()))


@pytest.mark.parametrize("base", [None, HELD])
def test_what_a_device_is_to_hold_comes_back(base: Held | None) -> None:
    holding = Holding(codec=CODECS["sparse"], base=base, digest="f" * 64)
    body = next(body for body in BODIES if isinstance(body, messages.TrainRequest))
    asked = body.model_copy(update={"round": 3, "holding": holding})
    assert messages.TrainRequest.from_json(asked.to_json()) == asked
    fields = json.loads(asked.to_json())
    for wrong in ({"base": {**HELD.model_dump(), "round": 3}}, {"digest": "f"}, {"codec": 3}):
        text = json.dumps({**fields, "holding": {**fields["holding"], **wrong}})
        with pytest.raises(MessageError, match="holding"):
            messages.TrainRequest.from_json(text)


def test_what_a_device_says_it_holds_is_bounded() -> None:
    reply = next(body for body in BODIES if isinstance(body, TrainReply))
    text = reply.model_copy(update={"holds": (HELD,) * (MOST_HELD + 1)}).to_json()
    with pytest.raises(MessageError, match="holds"):
        TrainReply.from_json(text)
    for wrong in ({"round": -1}, {"digest": "0" * 63}, {"digest": "G" * 64}):
        text = reply.model_copy(update={"holds": (HELD.model_copy(update=wrong),)}).to_json()
        with pytest.raises(MessageError, match="holds"):
            TrainReply.from_json(text)
