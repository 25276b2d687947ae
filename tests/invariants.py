"""What holds for every family of search spaces; each family's tests call these.

The oracles are numpy's indexing, a module built on its own, torch's own counters, and the outputs
of the network that was exported.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedofa.protos.flower import Values
from fedofa.protos.inference import open_model
from fedofa.protos.manifest import FILE_NAMES, FLOATS, INTS, FileKind
from fedofa.protos.observing import observe_ranges
from fedofa.server.aggregation.update import Merged
from fedofa.server.config import parse_config
from fedofa.server.jobs import Job
from fedofa.server.optimizer import ServerOptimizer, ServerOptimizerConfig
from fedofa.server.simulate import simulate
from fedofa.specialize.export import Subnet, export_floats, module_of
from fedofa.specialize.quantizing import ROUNDED, FewBits, quantize, quantize_few
from fedofa.supernet.axes import regions, take
from fedofa.supernet.called_layers import narrow
from fedofa.supernet.cost import cost
from fedofa.supernet.fake_quant import rounded
from fedofa.supernet.families.catalogue import space_from_dict
from fedofa.supernet.kernel_inputs import observed
from fedofa.supernet.space import Arch, Space, plain
from fedofa.supernet.subnet import batch_norms, extract, on_views
from fedofa.supernet.weights import gather, initial, shapes_of, size_of, split
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Weights = dict[str, Tensor]
TOLERANCE = 1e-5


def shared_weights(space: Space, seed: int = 0) -> Weights:
    """Shared weights of which no two are alike, norm layers and biases included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in initial(space, seed).items()
    }


def inputs(space: Space, arch: Arch, seed: int, batch: int = 4) -> Tensor:
    """A batch of random inputs of an architecture."""
    shape = space.input_shape(arch)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def outcome(
    forward: Callable[[Tensor], Tensor], leaves: Mapping[str, Tensor], x: Tensor
) -> tuple[Tensor, Weights]:
    """Output, and the gradient of an uneven loss with respect to each leaf (zero where none)."""
    y = forward(x)
    loss = (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return y.detach(), {n: torch.zeros_like(leaf) if g is None else g for (n, leaf), g in pairs}


def scattered(gradients: Mapping[str, Tensor], space: Space, arch: Arch, like: Weights) -> Weights:
    """A static module's gradients at their places in the shared weights, by numpy's own indexing."""
    found = {name: np.zeros(tuple(value.shape), np.float32) for name, value in like.items()}
    for name, region in regions(space, arch).items():
        found[name][np.ix_(*map(positions, region))] = gradients[name].numpy()
    return {name: torch.from_numpy(value) for name, value in found.items()}


def positions(index: slice | tuple[int, ...]) -> list[int]:
    """The positions that an index takes."""
    return list(range(index.start, index.stop)) if isinstance(index, slice) else list(index)


def assert_close(mine: Weights, theirs: Weights) -> None:
    """Equal to 1e-5 of each tensor's largest value (or 1e-5 where values are small)."""
    assert mine.keys() == theirs.keys()
    for name in mine:
        scale = max(1.0, float(theirs[name].abs().max()))
        gap = float((mine[name] - theirs[name]).abs().max())
        assert gap <= TOLERANCE * scale, f"{name}: differs by {gap} of {scale}"


def check_views(space: Space, outer: Arch, arch: Arch, seed: int) -> None:
    """Views, extraction, a separate module and views inside `outer` give the same, gradients too."""
    shared, x = shared_weights(space, seed), inputs(space, arch, seed)

    leaves = {name: value.clone().requires_grad_() for name, value in shared.items()}
    y_views, on_shared = outcome(on_views(space, arch, leaves), leaves, x)

    cut = extract(space, arch, shared).train()
    y_cut, of_cut = outcome(cut, dict(cut.named_parameters()), x)

    separate = space.build(arch).train()
    values = split(gather(shared, regions(space, arch)), shapes_of(regions(space, arch)))
    separate.load_state_dict({**separate.state_dict(), **values})
    y_separate, of_separate = outcome(separate, dict(separate.named_parameters()), x)

    held = {n: v.requires_grad_() for n, v in take(shared, regions(space, outer)).items()}
    y_within, on_held = outcome(on_views(space, arch, held, outer), held, x)

    assert_close(
        {"views": y_views, "cut": y_cut, "within": y_within},
        dict.fromkeys(("views", "cut", "within"), y_separate),
    )
    assert_close(of_cut, of_separate)
    assert_close(on_shared, scattered(of_separate, space, arch, shared))
    # The same once more, by way of the outer subnet's own tensors.
    assert_close(scattered(on_held, space, outer, shared), on_shared)


def counted_macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(x)
    return int(counter.get_total_flops()) // 2


def check_counts(space: Space, arch: Arch) -> None:
    """MACs and parameters of the cost model are those of the built module."""
    with torch.device("meta"):
        module = space.build(arch)
        x = torch.zeros(1, *space.input_shape(arch))
    spent = cost(space, arch)
    assert spent.macs == counted_macs(module, x)
    assert spent.params == sum(p.numel() for p in module.parameters())


def check_description(space: Space) -> None:
    """The space comes back from its JSON form."""
    assert space_from_dict(plain(space.to_dict())) == space


def random_subnet(space: Space, arch: Arch, seed: int) -> Subnet:
    """A subnet to export, with random weights and norm statistics: equal ones would be written once."""
    weights = take(shared_weights(space, seed), regions(space, arch))
    parts = [value.numpy().ravel() for value in weights.values()]
    rng = np.random.default_rng(seed)
    for layer in batch_norms(space.build(arch)).values():
        parts += [rng.normal(size=layer.num_features), rng.uniform(1, 2, layer.num_features)]
    values = np.concatenate(parts).astype(np.float32)
    return Subnet(plain(space.to_dict()), dict(arch), values)


def lively_subnet(space: Space, arch: Arch, x: Values, seed: int) -> tuple[Subnet, Values]:
    """The first random subnet of some whose outputs for `x` vary, and those outputs.

    One that ends in a ReLU may answer 0 to everything, or nearly, while its weights are random: what
    int8 does to so little says nothing.
    """
    for drawn in range(seed, seed + 20_000, 1000):
        subnet = random_subnet(space, arch, drawn)
        with torch.no_grad():
            outputs = module_of(subnet)(torch.from_numpy(x)).numpy()
        if outputs.std() > 0.25 * np.abs(outputs).max():
            return subnet, outputs
    raise AssertionError(f"no random weights of {arch} give outputs that vary")


def check_export(space: Space, arch: Arch, folder: Path, seed: int = 0) -> None:
    """Float files equal the network; int8 files load, and keep most of its outputs' variance.

    ONNX files of 4 bits give what the network with rounded kernels gives, TFLite's most of it.
    """
    x = np.random.default_rng(seed).normal(size=(32, *space.input_shape(arch))).astype(np.float32)
    subnet, reference = lively_subnet(space, arch, x, seed)
    exported = export_floats(subnet, ("tflite", "onnx"), folder)
    assert exported.input_shape == x.shape[1:]
    ranges = {f: observe_ranges(c, FLOATS[f], x) for f, c in exported.observable.items()}
    seen: set[FileKind] = set()
    for entry in quantize(folder, ranges):
        gap = open_model(folder / entry.name, entry).run(x) - reference
        scale = max(1.0, float(np.abs(reference).max()))
        if entry.kind in INTS.values():
            assert explained(gap, reference) > 0.9, entry.kind
        else:
            assert np.abs(gap).max() <= 1e-4 * scale, entry.kind
        seen.add(entry.kind)
    (folder / ROUNDED).mkdir()
    for name in (FILE_NAMES[kind] for kind in FLOATS.values()):
        shutil.copy(folder / name, folder / ROUNDED)
    with torch.no_grad():
        expected = rounded_module(space, arch, subnet)(torch.from_numpy(x)).numpy()
    for entry in quantize_few(folder, FewBits(ranges)):
        gap = open_model(folder / entry.name, entry).run(x) - expected
        # LiteRT's converter multiplies a layer norm's scales into kernels before they are rounded.
        tflite = 0.9 if observed(space, arch) else 0.5
        least = 0.999 if entry.kind.startswith("onnx") else tflite
        assert explained(gap, expected) > least, entry.kind
        seen.add(entry.kind)
    assert seen == set(FILE_NAMES)


def explained(gap: Values, reference: Values) -> float:
    """The part of the reference's variance that is not in the gap."""
    return float(1 - np.square(gap).mean() / reference.var())


def rounded_module(space: Space, arch: Arch, subnet: Subnet) -> nn.Module:
    """The subnet with its kernels rounded as files of 4 bits hold them, in PyTorch."""
    shapes = shapes_of(regions(space, arch))
    weights = split(subnet.values[: size_of(shapes)], shapes)
    parts = [v.numpy().ravel() for v in rounded(weights, narrow(space, arch)).values()]
    values = np.concatenate([*parts, subnet.values[size_of(shapes) :]])
    return module_of(replace(subnet, values=values))


def check_federated(space: Space, folder: Path, rounds: int = 3, **recipe: Any) -> None:
    """Two device classes train it in simulation, on data that it can learn: the loss falls."""
    small = cost(space, space.smallest()).params + 1
    config: dict[str, Any] = {
        "name": "family",
        "space": plain(space.to_dict()),
        "round": {"rounds": rounds, "deadline_s": 100.0, "join_timeout_s": 0.1},
        "recipe": {
            "students": "sandwich",
            "steps": 6,
            "batch_size": 16,
            "lr": 0.05,
            "clip_norm": 1.0,
            **recipe,
        },
        "sampler": {"kind": "cover"},
        "classes": {"big": {}, "small": {"params": small}},
        "simulation": {
            "data": "synthetic:load",
            "arguments": {
                "shape": ",".join(str(n) for n in space.input_shape(space.largest())),
                "classes": space.layers(space.largest())[-1].out_channels,
            },
            "clients": {"big": 2, "small": 1},
        },
    }
    parse_config(config)
    simulate(Job("train", str(folder), config))
    from fedofa.server.events import read_events

    done = [e for e, _ in read_events(folder / "events.jsonl") if e["event"] == "round"]
    assert [e["accepted"] for e in done] == [3] * rounds
    losses = [float(str(e["loss"])) for e in done]
    assert losses[-1] < losses[0]


def stepped(shared: Weights, found: Merged) -> Weights:
    """The shared weights after the server takes a merged change as it is."""
    return ServerOptimizer(ServerOptimizerConfig(), 1).step(shared, found)
