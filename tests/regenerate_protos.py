"""Write the Python code of protos/*.proto: `python tests/regenerate_protos.py [FOLDER]`."""

import re
import shutil
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).parent.parent / "protos"
# The name under which protobuf's process-wide pool knows a file: `depot.proto` alone could be
# somebody else's.
PACKAGE = Path("fedofa/protos")


def regenerate(folder: Path) -> list[Path]:
    """Generate messages, stubs and services into `folder`; return the files written."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / PACKAGE).mkdir(parents=True)
        sources = [shutil.copy(path, root / PACKAGE) for path in sorted(PROTOS.glob("*.proto"))]
        outs = [f"--{out}={root}" for out in ("python_out", "pyi_out", "grpc_python_out")]
        include = Path(protoc.__file__).parent / "_proto"
        status = protoc.main(["protoc", f"-I{root}", f"-I{include}", *outs, *map(str, sources)])
        if status != 0:
            raise SystemExit(status)
        made = [path for path in (root / PACKAGE).iterdir() if path.suffix != ".proto"]
        return [_relative_imports(path, folder / path.name) for path in sorted(made)]


def _relative_imports(source: Path, target: Path) -> Path:
    text = source.read_text(encoding="utf-8")
    target.write_text(re.sub(r"(?m)^from fedofa\.protos import ", "from . import ", text))
    return target


if __name__ == "__main__":
    for written in regenerate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS):
        print(written)
