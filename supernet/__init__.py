"""The supernet: space, axes, regions, families, losses, cost, weights. Pure PyTorch."""
