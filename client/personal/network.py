"""The network that a published file holds, as a module that can be trained."""

import numpy as np
import torch
from torch import Tensor, nn

from ...protos.file_layers import Floats, Layer
from ...protos.manifest import Manifest
from ...protos.trainable import TRAINABLE_NAME, Trainable
from ...supernet.called_layers import WeightLayer, called_layers
from ...supernet.cost import cost
from ...supernet.errors import ArtifactError, ExportError
from ...supernet.families.catalogue import space_from_dict
from ...supernet.folding import folded

LARGER = 2
"""Times a model may have more parameters than values come for it, before it is built at all."""


class Network:
    """A subnet in the form of its files: no norm statistics, values fixed, layers by name.

    `layers` are those of `kind`'s file that may change, in the order in which they run; the `head` is
    the last layer that runs. ArtifactError when manifest and values do not belong together, or the
    head's place in the file is not known.
    """

    def __init__(self, manifest: Manifest, trainable: Trainable, kind: str) -> None:
        space = space_from_dict(manifest.space)
        arch = space.arch(manifest.arch)
        self.input_shape = space.input_shape(arch)
        held, params = sum(v.size for v in trainable.values.values()), cost(space, arch).params
        if params > LARGER * held:
            raise ArtifactError(f"{TRAINABLE_NAME}: {held} values; the model has {params}")
        try:
            self.module = folded(space.build(arch))
        except ExportError as error:
            raise ArtifactError(f"{TRAINABLE_NAME}: {error}") from None
        _load(self.module, trainable)
        self.module.requires_grad_(False)
        called = called_layers(self.module, torch.zeros(1, *self.input_shape))
        placed = trainable.placed.get(kind, {})
        self.layers: dict[str, WeightLayer] = {n: called[n] for n in called if n in placed}
        self.all_layers = tuple(called)
        if not called or (head := list(called)[-1]) not in placed:
            raise ArtifactError(
                f"{kind}: where the last layer lies in the file is not known, so this file cannot be "
                "personalized; pull another kind"
            )
        self.head = head
        self.placed = {name: placed[name] for name in self.layers}

    def values(self, name: str) -> Layer:
        """A layer's published values."""
        layer = self.layers[name]
        bias = None if layer.bias is None else layer.bias.numpy()
        return Layer(layer.weight.numpy(), bias)

    def logits(self, x: Tensor, changed: dict[str, Tensor]) -> Tensor:
        """Logits (B, classes) with some tensors, by name, in place of the published ones."""
        found: Tensor = torch.func.functional_call(self.module, changed, (x,))
        return found

    def outputs(self, x: Floats, layers: dict[str, Layer]) -> Floats:
        """Logits of inputs (n, …) with some layers in place of the published ones."""
        changed = {}
        for name, layer in layers.items():
            changed[f"{name}.weight"] = torch.from_numpy(layer.kernel)
            if layer.bias is not None:
                changed[f"{name}.bias"] = torch.from_numpy(layer.bias)
        with torch.inference_mode():
            found: Floats = self.logits(torch.from_numpy(x), changed).numpy()
        return found


def _load(module: nn.Module, trainable: Trainable) -> None:
    own = module.state_dict()
    for name in trainable.values.keys() - own.keys():
        prefix, _, last = name.rpartition(".")
        owner = dict(module.named_modules()).get(prefix)
        # A prior folded into a last layer without a bias has given it one.
        if last == "bias" and isinstance(owner, WeightLayer) and owner.bias is None:
            owner.bias = nn.Parameter(torch.zeros(len(owner.weight)))
    own = module.state_dict()
    if differing := sorted(own.keys() ^ trainable.values.keys()):
        raise ArtifactError(
            f"{TRAINABLE_NAME}: {differing[0]} is on one side only, of it and the model"
        )
    for name, value in trainable.values.items():
        if tuple(own[name].shape) != value.shape:
            raise ArtifactError(
                f"{TRAINABLE_NAME}: {name} has shape {value.shape}; the model's is {tuple(own[name].shape)}"
            )
    module.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in trainable.values.items()})
