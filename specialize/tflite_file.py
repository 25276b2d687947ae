"""TFLite files as bytes and as objects: read, named and packed as small as the format allows."""

from typing import Any

import numpy as np

from ..protos.inference import ACTIVATION

DATA_ALIGNMENT = 16


def read(content: bytes) -> Any:
    """The schema's ModelT of a file, its arrays as numpy's and its data in the buffers.

    The quantizer puts large data (256 KiB and more) behind the FlatBuffer and leaves offsets, which
    older runtimes do not know.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset:
            found = np.frombuffer(content, np.uint8, count=buffer.size, offset=buffer.offset)
            buffer.data, buffer.offset, buffer.size = found, 0, 0
    return model


def packed(model: Any) -> bytes:
    """The model's file, with short names: activations a<i>, constants c<i>."""
    _shorten(model)
    builder = _sharing_builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _sharing_builder() -> Any:
    """A FlatBuffers builder that writes equal vectors once and aligns tensor data.

    Zero points alone would be a sixth of an int8 file: 8 bytes per channel, all 0, written twice
    per layer. The format asks for tensor data at multiples of 16 bytes (`force_align`), which
    flatbuffers' Python writer does not do by itself; processors without unaligned loads need it.
    """
    import flatbuffers

    class SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(1024)
            self._written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: Any) -> int:  # noqa: N802
            key = x.dtype.str, x.tobytes()
            if key not in self._written:
                if x.dtype == np.uint8:
                    self.Prep(DATA_ALIGNMENT, x.nbytes)
                self._written[key] = super().CreateNumpyVector(x)
            return self._written[key]

    return SharingBuilder()


def _shorten(model: Any) -> None:
    """Names and what no runtime needs make up much of a small file."""
    graph = model.subgraphs[0]
    for place, tensor in enumerate(graph.tensors):
        constant = model.buffers[tensor.buffer].data is not None
        tensor.name = f"{'c' if constant else ACTIVATION}{place}".encode()
    graph.name = model.description = b""
    model.metadata, model.metadataBuffer = None, None
    _share_empty_buffer(graph, model)


def _share_empty_buffer(graph: Any, model: Any) -> None:
    """Give every tensor without data buffer 0, which the format keeps empty for that."""
    kept = model.buffers[:1]
    for tensor in graph.tensors:
        buffer = model.buffers[tensor.buffer]
        tensor.buffer = 0 if buffer.data is None else len(kept)
        if buffer.data is not None:
            kept.append(buffer)
    model.buffers = kept


def activations(model: Any) -> set[str]:
    """Names of the float32 tensors that are no constants."""
    floats = (
        tensor
        for tensor in model.subgraphs[0].tensors
        if model.buffers[tensor.buffer].data is None and tensor.type == 0
    )
    return {tensor.name.decode() for tensor in floats}


def ranks(model: Any) -> dict[str, int]:
    """Tensor name → number of dimensions."""
    return {tensor.name.decode(): len(tensor.shape) for tensor in model.subgraphs[0].tensors}


CHANNEL_AXIS = {3: 0, 4: 3, 9: 0}
"""Of the kernel, by the schema's code: convolution, depthwise convolution, fully connected."""
DEPTHWISE = 4


def weight_layers(model: Any) -> list[Any]:
    """The operators with a constant kernel, in order: convolutions and fully connected layers."""
    graph = model.subgraphs[0]
    return [
        operator
        for operator in graph.operators
        if code_of(model, operator) in CHANNEL_AXIS
        and model.buffers[graph.tensors[operator.inputs[1]].buffer].data is not None
    ]


def code_of(model: Any, operator: Any) -> int:
    """The schema's number of an operator's kind."""
    return int(model.operatorCodes[operator.opcodeIndex].builtinCode)
