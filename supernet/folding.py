"""Batch normalization folded into the convolutions before it: what is exported has none."""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .errors import ExportError
from .fx_folding import fold_followed
from .subnet import batch_norms


def folded(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode computing the same function without batch normalization.

    Each norm layer must follow a convolution or a linear layer, in one `nn.Sequential` or in what
    forward calls; ExportError names one that does not.
    """
    found = copy.deepcopy(module).eval()
    for chain in [m for m in found.modules() if isinstance(m, nn.Sequential)]:
        names = list(chain._modules)
        for before, name in pairwise(names):
            layer, norm = getattr(chain, before), getattr(chain, name)
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
                continue
            if isinstance(layer, nn.Conv1d | nn.Conv2d):
                setattr(chain, before, fuse_conv_bn_eval(layer, norm))
            elif isinstance(layer, nn.Linear):
                setattr(chain, before, fuse_linear_bn_eval(layer, norm))
            else:
                continue
            setattr(chain, name, nn.Identity())
    if batch_norms(found):
        fold_followed(found)
    left = list(batch_norms(found))
    if left:
        raise ExportError(
            f"{left[0]}: this norm layer follows no convolution or linear layer; it cannot be folded"
        )
    return found
