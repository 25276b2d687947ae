"""What exports of ONNX files need, importable from a process of its own."""

import torch


def preload() -> None:
    """What `export.preload` imports, but for LiteRT: most of the time that small exports take."""
    torch.set_num_threads(1)
    import onnxscript.optimizer  # noqa: F401
    from onnxscript.function_libs.torch_lib import ops  # noqa: F401
