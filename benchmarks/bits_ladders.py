"""`fedofa bench ladders`: artifacts that grow, and factored layers, against plain rounding.

A size ladder is one file whose prefix is already a network and whose further blocks refine it. Two
are tried, on the accuracy per bit of a weight: the bit planes of 8-bit weights, most significant
first, and BitStack's blocks (2025), each the signs of what is left times a matrix of rank 1 (float16
factors). Low rank factors layers by the rank that their inputs use (Utilised rank, 2024), the inputs'
second moments being what devices would send, against a plain SVD of the same ranks. All have
their norm statistics measured anew, as plain rounding has.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from fedofa.protos import durable
from fedofa.server.tables import table
from fedofa.supernet.fake_quant import is_rounded
from fedofa.supernet.space import Arch
from rich.console import Console
from torch import Tensor, nn

from .bits import KEPT, TASK_NAMES
from .bits_mixed import mixed_rows
from .bits_subnets import Change, Measurable, measurable

Record = dict[str, Any]
TEST_EXAMPLES = 2000
BUDGETS = ("c1", "c3")
SCALE_BITS = 16
ENERGIES = (0.999, 0.99, 0.95)
Rounded = tuple[Tensor, float]
"""A kernel as held, and the bits that it takes."""


def plain_rounding(weight: Tensor, bits: int) -> Rounded:
    """To 2^bits - 1 levels, symmetric, with a scale for each output channel."""
    rows = weight.flatten(1)
    levels = 2 ** (bits - 1) - 1
    scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / levels
    held = (rows / scale).round() * scale
    return held.view_as(weight), bits * rows.numel() + SCALE_BITS * len(rows)


def bit_planes(weight: Tensor, bits: int) -> Rounded:
    """The first planes of an 8-bit code: a sign and magnitudes cut off, the middle of what remains."""
    rows = weight.flatten(1)
    scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    code = (rows.abs() / scale).round()
    step = 2.0 ** (8 - bits)
    cut = (code / step).floor() * step
    middle = torch.where(cut > 0, cut + (step - 1) / 2, 0.0)
    return (rows.sign() * middle * scale).view_as(weight), bits * rows.numel() + SCALE_BITS * len(
        rows
    )


def bitstack(weight: Tensor, blocks: int) -> Rounded:
    """Signs of the residual times the rank-1 matrix nearest to its magnitudes, block after block."""
    rest = weight.flatten(1)
    held = torch.zeros_like(rest)
    for _ in range(blocks):
        left, values, right = torch.linalg.svd(rest.abs(), full_matrices=False)
        u, v = left[:, :1] * values[:1].sqrt(), values[:1].sqrt()[:, None] * right[:1]
        block = rest.sign() * (u.half().float() @ v.half().float())
        held, rest = held + block, rest - block
    m, n = rest.shape
    return held.view_as(weight), blocks * (m * n + 16 * (m + n))


def on_kernels(of: Callable[[Tensor], Rounded], spent: list[float]) -> Change:
    """Applied to every kernel; `spent` receives the bits of a weight in the mean."""

    def change(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = {name: of(w) for name, w in weights.items() if is_rounded(w)}
        spent.append(sum(b for _, b in found.values()) / sum(w.numel() for w, _ in found.values()))
        return {**weights, **{name: held for name, (held, _) in found.items()}}

    return change


def ladder_rows(on: Measurable, arch: Arch) -> list[Record]:
    """Bits of a weight and accuracy on every rung of the three."""
    tried: list[tuple[str, Callable[[Tensor], Rounded]]] = [
        *(("plain rounding", partial(plain_rounding, bits=bits)) for bits in (2, 3, 4, 5, 6, 8)),
        *(("bit planes", partial(bit_planes, bits=bits)) for bits in (2, 3, 4, 5, 6, 8)),
        *(("BitStack", partial(bitstack, blocks=blocks)) for blocks in (1, 2, 3, 4, 6)),
    ]
    rows = []
    for name, of in tried:
        spent: list[float] = []
        module = on.module(arch, on_kernels(of, spent))
        rows.append({"method": name, "bits": spent[0], "accuracy": _accuracy(on, arch, module)})
    return rows


def rank_rows(on: Measurable, arch: Arch) -> list[Record]:
    """Share of the parameters that is left, and accuracy, by kept energy."""
    usual = on.module(arch)
    moments = _second_moments(usual, torch.from_numpy(on.inputs(arch, on.statistics.x[:300])))
    rows = []
    for energy in ENERGIES:
        for name, whitened in (("utilised rank", True), ("plain SVD, same ranks", False)):
            new, share = _factored(usual, moments, energy, whitened=whitened)
            module = on.module(arch, partial(_replaced, new))
            rows.append(
                {
                    "method": f"{name}, {energy}",
                    "params": share,
                    "accuracy": _accuracy(on, arch, module),
                }
            )
    return rows


def _replaced(new: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {**weights, **new}


def _factored(
    module: nn.Module, moments: Mapping[str, Tensor], energy: float, *, whitened: bool
) -> tuple[dict[str, Tensor], float]:
    """Kernels of the rank that keeps the energy of W · √moment, where two factors are smaller.

    And the share of the parameters that is then left.
    """
    held, total = 0, 0
    new: dict[str, Tensor] = {}
    for path, moment in moments.items():
        kernel = module.get_parameter(f"{path}.weight").detach()
        weight, root = kernel.flatten(1), _root(moment)
        rank = _rank(weight @ root, energy)
        m, n = weight.shape
        total += m * n
        held += min(m * n, rank * (m + n))
        if rank * (m + n) >= m * n:
            continue
        seen = _truncated(weight @ root, rank) @ torch.linalg.pinv(root)
        new[f"{path}.weight"] = (seen if whitened else _truncated(weight, rank)).view_as(kernel)
    return new, held / total


def _second_moments(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Σ x xᵀ of every dense layer's inputs, patches of convolutions unfolded."""
    found: dict[str, Tensor] = {}

    def watch(path: str, layer: nn.Module) -> None:
        def note(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0]
            if isinstance(layer, nn.Conv2d):
                pads = (int(layer.padding[0]), int(layer.padding[1]))
                seen = nn.functional.unfold(
                    seen, layer.kernel_size, layer.dilation, pads, layer.stride
                )
                seen = seen.transpose(1, 2).flatten(0, 1)
            found[path] = seen.T @ seen

        layer.register_forward_pre_hook(note)

    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            watch(path, layer)
    with torch.no_grad():
        module(x)
    return found


def _root(moment: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(moment.double())
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root.float()


def _rank(weight: Tensor, energy: float) -> int:
    values = torch.linalg.svdvals(weight).square()
    return int((values.cumsum(0) / values.sum() < energy).sum()) + 1


def _truncated(weight: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    found: Tensor = (left[:, :rank] * values[:rank]) @ right[:rank]
    return found


def _accuracy(on: Measurable, arch: Arch, module: nn.Module) -> float:
    with torch.no_grad():
        logits = module(torch.from_numpy(on.inputs(arch, on.test.x)))
    return float((logits.argmax(1).numpy() == on.test.y).mean())


def command(results: Path) -> list[Record]:
    """Measure, write `bits-ladders.json`, print means over the subnets."""
    torch.set_num_threads(1)
    kept = []
    for task in TASK_NAMES:
        on = measurable(task, KEPT, TEST_EXAMPLES)
        for budget, arch in on.archs():
            if budget not in BUDGETS:
                continue
            base = _accuracy(on, arch, on.module(arch))
            for row in (*ladder_rows(on, arch), *rank_rows(on, arch), *mixed_rows(on, arch)):
                drop = base - row["accuracy"]
                kept.append({"task": task, "budget": budget, "drop": drop, **row})
    durable.write(results / "bits-ladders.json", json.dumps(kept, indent=1).encode() + b"\n")
    Console().print(table(summary(kept), "mean over four subnets"))
    return kept


def summary(rows: list[Record]) -> list[Record]:
    """Per method and rung the mean drop in points, in the order in which they were tried."""
    by_subnet: dict[tuple[str, str], list[Record]] = {}
    for row in rows:
        by_subnet.setdefault((row["task"], row["budget"]), []).append(row)
    return [
        {
            "method": rung[0]["method"],
            "bits a weight": f"{mean(r['bits'] for r in rung):.2f}" if "bits" in rung[0] else "",
            "bytes": f"{mean(r['size_bytes'] for r in rung):,.0f}"
            if "size_bytes" in rung[0]
            else "",
            "parameters": f"{mean(r['params'] for r in rung):.2f}" if "params" in rung[0] else "",
            "drop": f"{100 * mean(r['drop'] for r in rung):+.1f}",
        }
        for rung in zip(*by_subnet.values(), strict=True)
    ]
