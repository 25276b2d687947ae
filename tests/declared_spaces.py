"""Declared spaces of the networks in `own_networks` and of two torchvision models."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from fedofa.supernet.families.declared import DeclaredSpace

TRUSTED = "own_networks,torchvision.models"
RESNET: Mapping[str, Any] = {
    "module": "own_networks:resnet",
    "input_size": [1, 12, 12],
    "widths": {
        "conv1": [8, 12, 16],
        "layer?.*.conv1": [0.5, 1.0],
        "layer2.0.conv2": [16, 24, 32],
    },
    "kernels": {"conv1": [3, 5]},
    "depths": {"layer1": ["layer1.1"], "layer2": ["layer2.1"]},
    "resolutions": [8, 12],
}
MIXED: Mapping[str, Any] = {
    "module": "own_networks:mixed",
    "input_size": [2, 6, 6],
    "widths": {
        "left": [4, 8],
        "right": [6, 9, 12],
        "squeeze": [2, 4],
        "reduce": [4, 8],
        "hidden": [12, 24],
    },
    "kernels": {"depthwise": [1, 3, 5]},
}
BORDERED: Mapping[str, Any] = {
    "module": "own_networks:bordered",
    "input_size": [1, 12, 12],
    "widths": {"first": [2, 4, 8]},
    "kernels": {"first": [1, 3, 5], "twice": [1, 3]},
}
SEQUENCE: Mapping[str, Any] = {
    "module": "own_networks:sequence",
    "input_size": [2, 10],
    "widths": {"first": [4, 8], "near": [2, 4], "far": [2, 3, 4], "hidden": [6, 12]},
    "kernels": {"*": [1, 3]},
}
STRAIGHT: Mapping[str, Any] = {
    "module": "own_networks:straight",
    "input_size": [1, 8, 8],
    "widths": {"first": [4, 8], "last": [2, 6]},
    "kernels": {"middle.*": [1, 3]},
    "depths": {"middle": ["middle.0", "middle.3"]},
}
ATTENTION: Mapping[str, Any] = {
    "module": "own_networks:attention",
    "input_size": [1, 8, 8],
    "widths": {"up": [8, 16, 32]},
}
SCALED: Mapping[str, Any] = {
    "module": "own_networks:scaled",
    "input_size": [1, 8, 8],
    "widths": {"inner": [4, 8]},
}
LOW_RANK: Mapping[str, Any] = {
    "module": "own_networks:low_rank",
    "input_size": [1, 8, 8],
    "widths": {"lora_A": [2, 4]},
}
MOBILENET: Mapping[str, Any] = {
    "module": "torchvision.models:mobilenet_v2",
    "arguments": {
        "num_classes": 4,
        "dropout": 0.0,
        "width_mult": 0.5,
        "inverted_residual_setting": [[1, 16, 1, 1], [3, 24, 2, 2], [3, 32, 2, 2]],
    },
    "input_size": [3, 16, 16],
    "widths": {"*": {"options": [0.25, 0.5, 1.0], "gene": "width"}},
    "depths": {"stage2": ["features.3"], "stage3": ["features.5"]},
}
SQUEEZENET: Mapping[str, Any] = {
    "module": "torchvision.models:squeezenet1_1",
    "arguments": {"num_classes": 4, "dropout": 0.0},
    "input_size": [3, 32, 32],
    "widths": {"*.squeeze": [0.5, 1.0], "*.expand*": [0.25, 0.5, 1.0], "features.0": [16, 64]},
}


@cache
def declared(name: str) -> DeclaredSpace:
    """The space of one of the declarations above; the modules must be trusted."""
    return DeclaredSpace.from_dict(globals()[name])
