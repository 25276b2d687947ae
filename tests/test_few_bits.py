"""Files of 4-bit weights in a run: rounded as measured, published beside the others or alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedofa.client.app import app as honest_app
from fedofa.client.data import client_data
from fedofa.client.golden import run_golden
from fedofa.protos.manifest import FILE_NAMES, FLOATS, FileEntry, Manifest, TensorSpec
from fedofa.protos.messages import MessageError
from fedofa.protos.observing import observe_ranges
from fedofa.protos.subnets import flat_statistics, pack, unpack
from fedofa.server import rounding
from fedofa.server.chosen import Chosen, Work
from fedofa.server.compensation import LIKELIER
from fedofa.server.evaluation import Exported, FederatedEvaluator, Target
from fedofa.server.figures import FileMeasured, Measured
from fedofa.server.fingerprint import fingerprint
from fedofa.server.model_folders import ModelFolders
from fedofa.server.production import Production
from fedofa.server.publication import check_figures, check_sizes, dispensable, needed
from fedofa.server.specialization import Specialization
from fedofa.specialize import onnx_quantize, tflite
from fedofa.specialize.adjust import Adjustment
from fedofa.specialize.export import PRELOADS, Subnet, export_floats, module_of
from fedofa.specialize.filesize import largest_bytes, predicted_size_bytes
from fedofa.specialize.fork_server import ForkServer
from fedofa.specialize.quantizing import ROUNDED, FewBits, quantize_few
from fedofa.supernet.axes import regions, take
from fedofa.supernet.batchnorm import collect
from fedofa.supernet.called_layers import kernels, narrow
from fedofa.supernet.cost import Budget, cost
from fedofa.supernet.errors import ExportError, UsageError
from fedofa.supernet.fake_quant import quantized, rounded
from fedofa.supernet.space import Arch, Space
from fedofa.supernet.subnet import static
from fedofa.supernet.weights import gather, initial
from fleets import Run, grid_of, small_config, small_fleet
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import random_subnet
from strategies import DIGITS

SEARCH = {
    "samples": 8, "population": 4, "generations": 1, "finalists": 1, "random_baseline": 1
}  # fmt: skip
EXPORT: dict[str, Any] = {"formats": ["onnx"], "max_accuracy_drop": 1.0, "int4": True}


# ── rounding ─────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 99), st.sets(st.sampled_from(["a", "b", "c"])), st.sampled_from([2, 4, 8]))
def test_only_what_is_named_is_rounded(seed: int, names: set[str], bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(3, 5, generator=generator) for name in "abc"}
    found = rounded(values, dict.fromkeys(names, bits))
    assert list(found) == list(values)
    for name, value in values.items():
        expected = quantized({name: value}, bits)[name] if name in names else value
        assert torch.equal(found[name], expected)


@pytest.mark.parametrize("widths", [{"gone": 4}, {"bias": 4}, {"kernel": 5}])
def test_what_is_no_kernel_or_no_width_is_refused(widths: dict[str, int]) -> None:
    values = {"kernel": torch.zeros(2, 2), "bias": torch.zeros(2)}
    with pytest.raises(UsageError, match=f"{next(iter(widths))}|bits = 5"):
        rounded(values, widths)


def test_kernels_over_one_channel_keep_8_bits() -> None:
    arch = DIGITS.largest()
    held, widths = kernels(DIGITS, arch), narrow(DIGITS, arch)
    assert set(widths.values()) == {4, 8}
    for name, kernel in held.items():
        layer = kernel.layer
        alone = isinstance(layer, torch.nn.Conv2d) and layer.in_channels // layer.groups == 1
        assert widths[name] == (8 if alone else 4)


@given(st.integers(0, 30))
@settings(max_examples=10)
def test_devices_round_what_each_subnet_of_a_group_is_to_have_rounded(seed: int) -> None:
    shared, arch = initial(DIGITS, seed), DIGITS.smallest()
    archs = [arch, DIGITS.largest(), arch]
    widths: tuple[dict[str, int], ...] = ({}, {}, dict(narrow(DIGITS, arch)))
    (group,), flat = pack(DIGITS, shared, [archs])
    group = group.model_copy(update={"widths": widths})
    found = list(unpack(DIGITS, [group], flat, with_statistics=False))
    for (mine, module), asked in zip(found, widths, strict=True):
        own = rounded(take(shared, regions(DIGITS, mine)), asked)
        for name, value in module.named_parameters():
            assert torch.equal(value, own[name])
    short = group.model_copy(update={"widths": widths[:2]})
    with pytest.raises(MessageError, match="2 widths for 3 subnets"):
        list(unpack(DIGITS, [short], flat, with_statistics=False))


# ── measured on devices ──────────────────────────────────────────────────────────────────────────


def evaluator_of(folder: Path) -> tuple[Run, FederatedEvaluator]:
    run = Run(folder, small_config(), grid_of(small_fleet(folder), honest_app))
    fleet, training = run.roll.gather(), run.training
    found = FederatedEvaluator(run.exchange, fleet, training.space, training.weights, run.log)
    return run, found


def test_statistics_of_rounded_kernels_are_those_of_the_rounded_network(tmp_path: Path) -> None:
    run, evaluator = evaluator_of(tmp_path)
    space = run.training.space
    arch, bound = space.smallest(), Budget(params=3000)
    widths = narrow(space, arch)
    plain, found = (
        evaluator.statistics([Target(arch, bound), Target(arch, bound, widths=widths)])[place]
        for place in (0, 1)
    )
    own = rounded(take(run.training.weights, regions(space, arch)), widths)
    module, batches = static(space, arch, own), []
    for device in small_fleet(tmp_path):
        data = client_data(device.source)
        x = torch.from_numpy(data.normalized(data.train.x))
        batches += [part for part in x.split(64) if len(part) >= 2]  # type: ignore[no-untyped-call]
    expected = collect(module, batches)
    assert list(found) == list(expected)
    for name, moments in expected.items():
        np.testing.assert_allclose(found[name].mean, moments.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[name].variance, moments.variance, rtol=1e-5)
    assert any(not np.allclose(found[n].mean, plain[n].mean, rtol=1e-3) for n in expected)


def work_of(
    space: Space, arch: Arch, weights: Any, file_bytes: int | None = None, bits: int = 4
) -> Work:
    budget = Budget(params=3000, file_bytes=file_bytes)
    chosen = Chosen(
        "any",
        arch,
        budget,
        {},
        Measured(1, 2),
        ("tflite", "onnx"),
        int4=True,
        kind="tflite_int4" if bits == 4 else "tflite_int8",
    )
    subnet = Subnet(space.to_dict(), dict(arch), gather(weights, regions(space, arch)))
    return Work(chosen, subnet, Path("nowhere"))


def test_the_kernels_that_keep_8_bits_are_those_that_lose_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, evaluator = evaluator_of(tmp_path)
    space, weights = run.training.space, run.training.weights
    arch = space.smallest()
    counts = {name: layer.weight.numel() for name, layer in kernels(space, arch).items()}
    narrowed = [name for name, bits in narrow(space, arch).items() if bits == 4]
    worst = narrowed[1]
    losses = {name: 5.0 if name == worst else 1.0 for name in narrowed}
    monkeypatch.setattr(rounding, "_losses", lambda *_: losses)
    work = work_of(space, arch, weights)
    (plain,) = rounding.rounded_subnets(evaluator, [work]).values()
    assert plain.widths == ()
    target = Target(arch, work.chosen.budget, widths=narrow(space, arch))
    statistics = flat_statistics(evaluator.statistics([target])[0])
    expected = np.concatenate([gather(weights, regions(space, arch)), statistics])
    np.testing.assert_array_equal(plain.subnet.values, expected)
    least = sum(-(-n * narrow(space, arch)[name] // 8) for name, n in counts.items())
    share = (least + counts[worst] // 2 + 1) / sum(counts.values())
    (mixed,) = rounding.rounded_subnets(evaluator, [work], share).values()
    assert [count for count, _ in mixed.widths] == list(counts.values())
    widths = dict(zip(counts, (bits for _, bits in mixed.widths), strict=True))
    assert {name for name in narrowed if widths[name] == 8} == {worst}
    # A bound on the file's size that leaves no room leaves no kernel 8 bits.
    tight = largest_bytes(("tflite", "onnx"), space.layers(arch), 4)
    bounded = work_of(space, arch, weights, file_bytes=tight)
    (found,) = rounding.rounded_subnets(evaluator, [bounded], share).values()
    assert found.widths == ()
    roomy = work_of(space, arch, weights, file_bytes=2 * tight)
    (found,) = rounding.rounded_subnets(evaluator, [roomy], share).values()
    assert found.widths == mixed.widths


def test_what_a_kernel_loses_is_measured_with_it_alone_rounded(tmp_path: Path) -> None:
    run, evaluator = evaluator_of(tmp_path)
    run.start()
    evaluator = FederatedEvaluator(
        run.exchange, run.roll.gather(), run.training.space, run.training.weights, run.log
    )
    arch = run.training.space.smallest()
    work = work_of(run.training.space, arch, run.training.weights)
    names = [name for name, bits in narrow(run.training.space, arch).items() if bits == 4]
    found = rounding._losses(evaluator, work.chosen, names)
    assert found is not None
    target = Target(arch, work.chosen.budget, widths={names[0]: 4})
    alone = [Target(arch, work.chosen.budget), target]
    sums = evaluator.likelihoods(alone, evaluator.statistics(alone), [1.0])
    assert found[names[0]] == pytest.approx(sums[1][0] - sums[0][0])
    assert list(found) == names
    assert len(set(found.values())) == len(names)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_layers_have_bits_of_their_own_in_both_formats(tmp_path: Path) -> None:

    arch = DIGITS.smallest()
    held = kernels(DIGITS, arch)
    exported = export_floats(random_subnet(DIGITS, arch, 0), ("tflite", "onnx"), tmp_path / ROUNDED)
    x = np.random.default_rng(0).normal(size=(4, *exported.input_shape)).astype(np.float32)
    ranges = {f: observe_ranges(c, FLOATS[f], x) for f, c in exported.observable.items()}
    counts = [layer.weight.numel() for layer in held.values()]
    for sizes in (
        tflite.kernel_sizes(tmp_path / ROUNDED / FILE_NAMES["tflite_fp32"]),
        [
            int(np.prod(shape))
            for shape in onnx_quantize.kernel_shapes(tmp_path / ROUNDED / FILE_NAMES["onnx_fp32"])
        ],
    ):
        assert sizes == counts
    widths = list(narrow(DIGITS, arch).values())
    at = max((n, place) for place, n in enumerate(counts) if widths[place] == 4)[1]
    widths[at] = 8
    copied = tmp_path / "copied"
    (copied / ROUNDED).mkdir(parents=True)
    for kind in FLOATS.values():
        content = (tmp_path / ROUNDED / FILE_NAMES[kind]).read_bytes()
        (copied / ROUNDED / FILE_NAMES[kind]).write_bytes(content)
    with pytest.raises(ExportError, match="order"):
        FewBits(ranges, ((7, 8),)).layers(counts)
    uniform = quantize_few(tmp_path, FewBits(ranges))
    mixed = quantize_few(copied, FewBits(ranges, tuple(zip(counts, widths, strict=True))))
    assert not (tmp_path / ROUNDED).exists()
    for one, other in zip(uniform, mixed, strict=True):
        assert one.kind == other.kind
        # Of what is packed in pairs of bytes and quads, a few bytes more or less.
        more = other.size_bytes - one.size_bytes
        assert more == pytest.approx(counts[at] / 2, abs=64)


# ── what is published ────────────────────────────────────────────────────────────────────────────


def entry_of(kind: Any, size_bytes: int = 1) -> FileEntry:
    spec = TensorSpec(name="a0", shape=(1, 1), dtype="float32")
    name, sha256 = FILE_NAMES[kind], "0" * 64
    return FileEntry(
        kind=kind, name=name, size_bytes=size_bytes, sha256=sha256, inputs=(spec,), outputs=(spec,)
    )  # fmt: skip


def figure(right: int) -> FileMeasured:
    return FileMeasured(Measured(right, 100), Measured(90, 100), right, 1.0)


def test_a_file_of_4_bits_that_loses_too_much_is_left_out_where_there_are_others() -> None:
    run = small_config(export={"int4": True, "max_accuracy_drop": 0.05})
    space = run.build_space()
    work = work_of(space, space.smallest(), initial(space, 0))
    work.figures = {"onnx_int8": figure(88), "onnx_int4": figure(80), "tflite_int4": figure(89)}
    found = dispensable(work, run.export)
    assert found.keys() == {"onnx_int4"}
    assert "loses 0.100" in found["onnx_int4"]
    # Where it is what the bounds are about, there is no model without it.
    work.chosen = replace(work.chosen, kind="onnx_int4")
    assert not dispensable(work, run.export)
    with pytest.raises(ExportError, match=r"onnx_int4 loses 0\.100"):
        check_figures(work.figures, run.export)


def test_a_bound_on_size_is_about_the_files_of_the_class_s_kind() -> None:

    fp32, int8, int4 = (
        entry_of(kind, size_bytes)
        for kind, size_bytes in (("onnx_fp32", 4000), ("onnx_int8", 1000), ("onnx_int4", 600))
    )
    run = small_config(export={"int4": True})
    space = run.build_space()
    bound = int8.size_bytes - 1
    narrow_class = work_of(space, space.smallest(), initial(space, 0), file_bytes=bound)
    narrow_class.chosen = replace(narrow_class.chosen, kind="onnx_int4")
    narrow_class.entries = [int8, int4]
    narrow_class.figures = {"onnx_int8": figure(90), "onnx_int4": figure(90)}
    assert dispensable(narrow_class, run.export).keys() == {"onnx_int8"}
    check_sizes([int4, fp32], narrow_class.chosen)
    wide_class = work_of(space, space.smallest(), initial(space, 0), file_bytes=bound, bits=8)
    wide_class.entries = [int8, int4]
    wide_class.figures = narrow_class.figures
    assert not dispensable(wide_class, run.export)
    with pytest.raises(ExportError, match=f"onnx_int8 has {int8.size_bytes} bytes"):
        check_sizes(wide_class.entries, wide_class.chosen)
    too_large = replace(narrow_class.chosen, budget=Budget(file_bytes=int4.size_bytes - 1))
    with pytest.raises(ExportError, match="onnx_int4"):
        check_sizes([int4], too_large)


def test_a_class_of_a_kind_that_is_not_made_is_refused_with_what_to_set() -> None:
    classes = {"any": {"kind": "tflite_int4"}}
    with pytest.raises(UsageError, match=r"classes\.any: kind = tflite_int4.*export\.int4 = true"):
        small_config(classes=classes)
    small_config(classes=classes, export={"int4": True})
    with pytest.raises(
        UsageError, match=r"classes\.any: kind = tflite_int4.*formats = onnx; add tfl"
    ):
        small_config(classes=classes, export={"int4": True, "formats": ["onnx"]})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two classes under the same bound on the file's size: of their int8 files, and of those of 4 bits."""
    folder = tmp_path_factory.mktemp("run")
    space = small_config().build_space()
    bound = int(1.03 * largest_bytes(("onnx",), space.layers(space.smallest()), 8))
    classes = {
        "wide": {"file_bytes": bound},
        "narrow": {"file_bytes": bound, "kind": "onnx_int4"},
    }
    config = small_config(
        classes=classes, search=SEARCH, export={**EXPORT, "int4_bytes": 0.8}, round={"rounds": 2}
    )
    run = Run(folder, config, grid_of(small_fleet(folder, ("wide", "narrow")), honest_app))
    run.start()
    training = run.training
    work = Specialization(
        config, training.space, training.weights, run.exchange, run.roll.gather(), run.log
    )
    work.run(folder, folder / "registry")
    return run


def manifest_of(run: Run, name: str) -> Manifest:
    return Manifest.from_json((run.folder / "models" / name / "manifest.json").read_bytes())


def test_each_model_has_a_file_of_4_bits_that_passes_its_golden_test(done: Run) -> None:
    assert not done.events("class_failed")
    for name in ("wide", "narrow"):
        manifest, folder = manifest_of(done, name), done.folder / "models" / name
        left = {path.name for path in folder.iterdir()}
        assert left == {"manifest.json", *(e.name for e in manifest.named().values())}
        run_golden(folder, "onnx_int4")
        plans = done.training.space.layers(done.training.space.arch(manifest.arch))
        predicted = predicted_size_bytes("onnx_int4", plans)
        # Some kernels have 8 bits: at most what `int4_bytes` allows beyond all in 4.
        weights = sum(plan.weights for plan in plans)
        size_bytes = manifest.file("onnx_int4").size_bytes
        assert 0.99 * predicted <= size_bytes <= 1.01 * predicted + 0.3 * weights


def test_under_one_bound_on_size_4_bits_leave_room_for_a_larger_subnet(done: Run) -> None:
    wide, narrow_one = manifest_of(done, "wide"), manifest_of(done, "narrow")
    bound = wide.budget["file_bytes"]
    assert narrow_one.cost["params"] > wide.cost["params"]
    assert wide.file("onnx_int8").size_bytes <= bound
    assert narrow_one.file("onnx_int4").size_bytes <= bound
    (left_out,) = done.events("file_left_out")
    assert (left_out["device_class"], left_out["kind"]) == ("narrow", "onnx_int8")
    assert f"file_bytes = {bound}" in left_out["reason"]
    assert {entry.kind for entry in narrow_one.files} == {"onnx_int4", "onnx_fp32"}
    rows = {row["class"]: row for row in json.loads((done.folder / "specialized.json").read_text())}
    for name, manifest in (("wide", wide), ("narrow", narrow_one)):
        assert rows[name]["files"].keys() == {entry.kind for entry in manifest.files}
        assert "onnx_int4" in rows[name]["validation"]


def test_where_only_files_of_4_bits_are_wanted_no_other_is_made(done: Run, tmp_path: Path) -> None:
    training, fleet = done.training, done.roll.gather()
    evaluator = FederatedEvaluator(done.exchange, fleet, training.space, training.weights, done.log)
    work = Production(done.config, evaluator, fleet, ModelFolders(tmp_path), done.log)
    arch, told = training.space.smallest(), list[str]()
    statistics = evaluator.statistics([Target(arch, Budget())])[0]
    chosen = Chosen(
        "few",
        arch,
        Budget(),
        statistics,
        Measured(1, 2),
        ("onnx",),
        ("onnx_int4",),
        int4=True,
        kind="onnx_int4",
    )
    with ForkServer(PRELOADS) as converters:
        work.begin([chosen])
        work.files(converters, told.append)
    assert work.verify(told.append)["few"].keys() == {"onnx_int4"}
    (made,) = work.publish(lambda draft, _paths: draft, told.append)
    assert [entry.kind for entry in made.manifest.files] == ["onnx_int4"]
    assert {path.name for path in (tmp_path / "few").iterdir()} == {
        "manifest.json", "model.int4.onnx",
    }  # fmt: skip
    run_golden(tmp_path / "few", "onnx_int4")
    (not_trainable,) = done.events("not_trainable")
    assert "4-bit weights" in not_trainable["reason"]
    # Its golden output is of the rounded network, so that the test is as sharp as a float file's.
    golden = made.manifest.golden
    assert (
        golden.tolerance["onnx_int4"]
        < 1e-3
        < np.abs(np.subtract(golden.reference("onnx_int4"), golden.output)).max()
    )


def production_of(done: Run, folder: Path) -> tuple[Production, FederatedEvaluator, Chosen]:
    """Of ONNX models, its evaluator, and the smallest subnet with a file of 4 bits beside others."""
    training, fleet = done.training, done.roll.gather()
    evaluator = FederatedEvaluator(done.exchange, fleet, training.space, training.weights, done.log)
    arch = training.space.smallest()
    statistics = evaluator.statistics([Target(arch, Budget())])[0]
    work = Production(done.config, evaluator, fleet, ModelFolders(folder), done.log)
    chosen = Chosen("any", arch, Budget(), statistics, Measured(1, 2), ("onnx",), int4=True)
    return work, evaluator, chosen


def test_devices_are_asked_for_second_moments_unless_the_run_is_private(
    done: Run, tmp_path: Path
) -> None:
    told = {event["device_class"]: event for event in done.events("rounded")}
    assert told.keys() >= {"wide", "narrow"}
    for event in told.values():
        assert event["compensated"] == (event["reason"] == "")
        assert not event["reason"] or event["reason"] == LIKELIER
    asked = [e for e in done.events("measured") if e["about"] == "query.inputs"]
    assert asked
    work, _, chosen = production_of(done, tmp_path)
    work._config = done.config.model_copy(update={"secure": object()})
    work.begin([chosen])
    assert [e for e in done.events("measured") if e["about"] == "query.inputs"] == asked
    assert "int4_compensate" in done.events("rounded")[-1]["reason"]


def test_devices_that_do_not_measure_it_leave_the_file_out_and_the_model_is_published(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, evaluator, chosen = production_of(done, tmp_path)
    monkeypatch.setattr(evaluator, "statistics", lambda _targets: {})
    work.begin([chosen, replace(chosen, name="few", kind="onnx_int4")])
    assert work.failed.keys() == {"few"}
    left_out = done.events("file_left_out")[-1]
    assert (left_out["device_class"], left_out["kind"]) == ("any", "int4")
    assert "no device measured" in left_out["reason"]


def test_a_file_of_4_bits_that_cannot_be_made_is_left_out_unless_it_is_what_is_wanted(
    done: Run, tmp_path: Path
) -> None:
    work, _, chosen = production_of(done, tmp_path)
    with ForkServer(PRELOADS) as converters:
        work.begin([chosen, replace(chosen, name="few", kind="onnx_int4")])
        for one in work._works.values():
            assert one.rounded is not None
            one.rounded.widths = ((7, 8),)  # of no network
        work.files(converters, lambda _what: None)
    assert work.verify(lambda _what: None)["any"].keys() == {"onnx_int8", "onnx_fp32"}
    assert work.failed.keys() == {"few"}
    assert "leave out export.int4_bytes" in work.failed["few"]
    left_out = done.events("file_left_out")[-1]
    assert (left_out["device_class"], left_out["kind"]) == ("any", "int4")
    assert work.publish(lambda draft, _paths: draft, lambda _what: None)


def test_a_device_is_asked_about_the_files_that_it_can_run(done: Run, tmp_path: Path) -> None:
    training, fleet = done.training, done.roll.gather()
    (first, member), *_ = fleet.members.items()
    profile = member.profile.model_copy(update={"runtimes": ("tflite_runtime", "onnxruntime")})
    fleet.members[first] = replace(member, profile=profile)
    evaluator = FederatedEvaluator(done.exchange, fleet, training.space, training.weights, done.log)
    entries = [entry_of(kind) for kind in FILE_NAMES]
    export = Exported(training.space.smallest(), {}, Budget(), [(entry, b"x") for entry in entries])
    mine = {entry.kind for entry, _ in evaluator._runnable(first, export)}
    assert mine == set(FILE_NAMES) - {"tflite_int4"}
    item, blob = evaluator._verify_item(export, first)
    assert (len(item.files), len(blob)) == (5, 4 * item.values + 5)
    work = work_of(training.space, training.space.smallest(), training.weights, bits=8)
    work.entries, work.figures = entries, {kind: figure(90) for kind in mine}
    assert needed(work) is None
    work.folder = tmp_path
    for entry in entries:
        (tmp_path / entry.name).write_bytes(b"x")
    for kind in dispensable(work, done.config.export):
        work.remove(kind)
    assert {path.name for path in tmp_path.iterdir()} == {FILE_NAMES[kind] for kind in mine}
    assert {entry.kind for entry in work.entries} == work.figures.keys() == mine
    work.entries = [*work.entries, entry_of("tflite_int4")]
    work.chosen = replace(work.chosen, kind="tflite_int4")
    assert needed(work) == "tflite_int4"


def test_a_rounded_subnet_is_adjusted_like_the_other_and_not_equalized(tmp_path: Path) -> None:
    run, evaluator = evaluator_of(tmp_path)
    space, arch = run.training.space, run.training.space.smallest()
    work = work_of(space, arch, run.training.weights)
    work.subnet = replace(work.subnet, equalize=True, adjustment=Adjustment(temperature=2.0))
    (part,) = rounding.rounded_subnets(evaluator, [work]).values()
    assert (part.subnet.equalize, part.subnet.adjustment.temperature) == (False, 2.0)
    x = torch.randn(3, *space.input_shape(arch), generator=torch.Generator().manual_seed(0))
    whole = replace(part, subnet=replace(part.subnet, adjustment=Adjustment()))
    with torch.no_grad():
        halved, usual = (rounding.module_of_rounded(space, p)(x) for p in (part, whole))
        floats = module_of(whole.subnet)(x)
    torch.testing.assert_close(2 * halved, usual)
    assert not torch.allclose(usual, floats, rtol=1e-2)


def test_what_a_fleet_s_plan_reckoned_with_is_not_widened(tmp_path: Path) -> None:
    run, evaluator = evaluator_of(tmp_path)
    work = work_of(run.training.space, run.training.space.smallest(), run.training.weights)
    work.chosen = replace(work.chosen, kinds=("tflite_int4",))
    (part,) = rounding.rounded_subnets(evaluator, [work], 0.9).values()
    assert part.widths == ()
    assert dict(part.kernels) == narrow(run.training.space, run.training.space.smallest())


def test_widths_stay_with_their_subnets_where_a_device_holds_too_little_for_one_hull(
    tmp_path: Path,
) -> None:
    run, evaluator = evaluator_of(tmp_path)
    space = run.training.space
    small = space.smallest()
    other = space.arch({**small, "s1.width": 16, "head.width": 32})
    widths = [dict(narrow(space, small)), {}, dict(narrow(space, other))]
    targets = [
        Target(arch, Budget(params=3000), widths=asked)
        for arch, asked in zip((small, small, other), widths, strict=True)
    ]
    evaluator._fleet.members["dev-1"].profile.budget["params"] = cost(space, other).params - 1
    groups, _ = evaluator._packed("dev-1", targets)
    assert [len(group.archs) for group in groups] == [2, 1]
    assert [one for group in groups for one in group.widths] == widths


def test_bytes_of_files_that_are_not_made_are_refused() -> None:
    with pytest.raises(UsageError, match="set int4 = true"):
        small_config(export={"int4_bytes": 0.7})


def test_what_a_resumed_run_must_have_kept_has_sampled_bits_only_where_there_are_any() -> None:
    plain, sampled = small_config(), small_config(recipe={"sample_bits": [32, 4]})
    space = plain.build_space()
    assert "sample_bits" not in fingerprint(plain, space)["recipe"]  # type: ignore[operator]
    assert fingerprint(sampled, space)["recipe"]["sample_bits"] == [32, 4]  # type: ignore[index]
