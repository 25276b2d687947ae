"""The generated code in protos/ is what the .proto files and the pinned generator give."""

from pathlib import Path

from regenerate_protos import PROTOS, regenerate


def test_the_generated_code_is_what_the_proto_files_give(tmp_path: Path) -> None:
    made = {path.name: path.read_bytes() for path in regenerate(tmp_path)}
    kept = {path.name: path.read_bytes() for path in PROTOS.glob("*_pb2*.py*")}
    assert made == kept, "run: python tests/regenerate_protos.py"
    assert len(made) == 3 * len(list(PROTOS.glob("*.proto")))


def test_the_generated_code_imports_its_neighbours_relatively() -> None:
    for path in PROTOS.glob("*_pb2*.py*"):
        assert "import fedofa" not in path.read_text()
        assert "from fedofa" not in path.read_text()
