"""The runtimes that may be installed on a device, and how each loads a file.

ai-edge-litert or tflite-runtime run TFLite files, onnxruntime runs ONNX files. None is imported
before a file needs it.
"""

import contextlib
import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from ..supernet.errors import ArtifactError

LITERT, TFLITE, ONNX = "ai_edge_litert", "tflite_runtime", "onnxruntime"
_stderr_lock = threading.Lock()


def available_runtimes() -> tuple[str, ...]:
    """Installed runtimes, by package name."""
    return tuple(name for name in (LITERT, TFLITE, ONNX) if importlib.util.find_spec(name))


def load_tflite(content: bytes, threads: int, *, observe: bool = False) -> Any:
    """A TFLite interpreter ready to run; with `observe` it keeps every tensor, and runs slower.

    ArtifactError when no runtime is installed or the file does not load.
    """
    found = [name for name in (LITERT, TFLITE) if name in available_runtimes()]
    if not found:
        raise ArtifactError(
            "no TFLite runtime here; pip install ai-edge-litert (or tflite-runtime)"
        )
    runtime = _imported(f"{found[0]}.interpreter")
    resolvers = runtime.OpResolverType
    # Delegates fuse operators, so that tensors between them need not exist.
    resolver = resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES if observe else resolvers.AUTO
    try:
        with silent_stderr():
            loaded = runtime.Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_op_resolver_type=resolver,
                experimental_preserve_all_tensors=observe,
            )
            loaded.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"{found[0]} does not load this file: {_line(error)}") from None
    return loaded


def load_onnx(content: bytes, threads: int) -> Any:
    """An ONNX Runtime session; ArtifactError when it is not installed or the file does not load."""
    if ONNX not in available_runtimes():
        raise ArtifactError("no ONNX runtime here; pip install onnxruntime")
    runtime = _imported(ONNX)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong comes as an exception
    native = _imported("onnxruntime.capi.onnxruntime_pybind11_state")
    names = ("Fail", "InvalidGraph", "InvalidProtobuf", "InvalidArgument", "NotImplemented")
    refusals = (*(getattr(native, name) for name in names), RuntimeError)
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except refusals as error:
        raise ArtifactError(f"{ONNX} does not load this file: {_line(error)}") from None


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what native code writes to the error stream: notices that no user can act on.

    It writes to the descriptor, past Python's own stream. One thread at a time may turn it off.
    """
    with _stderr_lock:
        try:
            kept = os.dup(2)
        except OSError:  # a process without an error stream has nothing to keep silent
            yield
            return
        try:
            with open(os.devnull, "wb") as sink:
                os.dup2(sink.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, AttributeError) as error:  # the latter: made for another numpy
        package = name.partition(".")[0]
        raise ArtifactError(
            f"{package} is installed but cannot be imported: {_line(error)}; reinstall it"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
