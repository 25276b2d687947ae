"""Batch normalization folded into the convolutions before it: what is exported has none."""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..supernet.errors import ExportError
from ..supernet.subnet import batch_norms


def folded(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode computing the same function without batch normalization.

    Each norm layer must follow a convolution in one `nn.Sequential`; ExportError names one that
    does not.
    """
    found = copy.deepcopy(module).eval()
    for chain in [m for m in found.modules() if isinstance(m, nn.Sequential)]:
        names = list(chain._modules)
        for before, name in pairwise(names):
            conv, norm = getattr(chain, before), getattr(chain, name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(chain, before, fuse_conv_bn_eval(conv, norm))
                setattr(chain, name, nn.Identity())
    left = list(batch_norms(found))
    if left:
        raise ExportError(f"{left[0]}: this norm layer follows no convolution; it cannot be folded")
    return found
