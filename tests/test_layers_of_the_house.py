"""The folders, their names, and who may import whom."""

import ast
import configparser
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
NOT_SHIPPED = {"tests", "build", "dist", "docs", "docker", "examples", "demo-out"}
GENERATED = ("_pb2.py", "_pb2_grpc.py")
FOLDERS = ("client", "protos", "server", "specialize", "supernet")
PULLING = (
    "fedofa.client.cli",
    "fedofa.client.pull",
    "fedofa.protos.messages",
    "fedofa.server.depot",
    "fedofa.server.serve",
)


def packages() -> dict[str, str]:
    """Import name → folder, of every folder of the project that holds an __init__.py."""
    found = {}
    for init in ROOT.rglob("__init__.py"):
        folder = init.parent.relative_to(ROOT)
        if not any(part in NOT_SHIPPED or part.startswith(".") for part in folder.parts):
            found[".".join(("fedofa", *folder.parts))] = folder.as_posix()
    return found


def sources() -> Iterator[tuple[Path, ast.Module]]:
    """Every Python file that is shipped, or that tests or benchmarks run, parsed."""
    for top in (*FOLDERS, "tests", "benchmarks", "examples"):
        for path in sorted((ROOT / top).rglob("*.py")):
            yield path, ast.parse(path.read_text(), str(path))


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Level (0 is absolute) and module of each import statement, also those in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def test_the_list_of_packages_is_the_folders_that_there_are() -> None:
    """One that is missing works in an editable install and is not in the wheel."""
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages())
    assert SETUPTOOLS["package-dir"] == packages()


def test_every_folder_with_python_files_is_a_package() -> None:
    for top in FOLDERS:
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_an_init_file_holds_a_docstring_and_nothing_else() -> None:
    for folder in packages().values():
        body = ast.parse((ROOT / folder / "__init__.py").read_text()).body
        assert [type(node) for node in body] == [ast.Expr], folder


def test_nothing_imports_a_folder_by_its_bare_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {module}"
        for path, tree in sources()
        for level, module in imports(tree)
        if level == 0 and module.split(".")[0] in FOLDERS
    ]
    assert found == []


def test_inside_the_folders_imports_are_relative() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {module}"
        for path, tree in sources()
        if path.relative_to(ROOT).parts[0] in FOLDERS and not path.name.endswith(GENERATED)
        for level, module in imports(tree)
        if level == 0 and module.split(".")[0] == "fedofa"
    ]
    assert found == []


def test_nothing_pickles() -> None:
    for path, tree in sources():
        if path.relative_to(ROOT).parts[0] in FOLDERS:
            modules = {module.split(".")[0] for level, module in imports(tree) if level == 0}
            assert not modules & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, path


def test_the_folder_docker_holds_no_python_file() -> None:
    """`docker` is an import name of somebody else's."""
    assert list((ROOT / "docker").rglob("*.py")) == []


def declared(*extras: str) -> set[str]:
    """Distributions that an installation with these extras has, by lower-case name."""
    project = PYPROJECT["project"]
    optional = project["optional-dependencies"]
    found, todo = set(), [*project["dependencies"], *(r for e in extras for r in optional[e])]
    while todo:
        requirement = todo.pop()
        name = re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")
        if name == "fedofa":
            wanted = requirement[requirement.index("[") + 1 : requirement.index("]")]
            todo += [r for extra in wanted.split(",") for r in optional[extra]]
        else:
            found.add(name)
    return found


def needed_at_import(paths: list[Path]) -> dict[str, Path]:
    """Third-party packages that these files import when they are loaded, outside of functions."""
    found = {}
    for path in paths:
        tree = ast.parse(path.read_text())
        top = ast.Module(
            [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []
        )
        for level, module in imports(top):
            name = module.split(".")[0]
            if level == 0 and name not in sys.stdlib_module_names and name != "fedofa":
                found[name] = path
    return found


def of_folders(*tops: str) -> list[Path]:
    return [path for top in tops for path in (ROOT / top).rglob("*.py")]


def of_contract(name: str, *tops: str) -> list[Path]:
    """Files of the modules that a contract of .importlinter is about, in these folders."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    modules = contracts[f"importlinter:contract:{name}"]["source_modules"].split()
    paths = [ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py") for module in modules]
    return [path for path in paths if path.relative_to(ROOT).parts[0] in tops]


@pytest.mark.parametrize(
    ("extras", "paths"),
    [
        ((), of_contract("torch-free", "client", "protos", "supernet")),
        (("client",), of_folders("client", "protos", "supernet")),
        (("server",), of_folders("client", "protos", "supernet", "specialize", "server")),
    ],
    ids=["a device that pulls", "a device that trains", "the operator"],
)
def test_an_installation_has_what_its_files_import(
    extras: tuple[str, ...], paths: list[Path]
) -> None:
    distributions, have = packages_distributions(), declared(*extras)
    missing = {
        name: path.relative_to(ROOT)
        for name, path in needed_at_import(paths).items()
        if not {d.lower().replace("_", "-") for d in distributions[name]} & have
    }
    assert missing == {}


def test_the_contracts_between_the_layers_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("module", PULLING)
def test_a_device_that_pulls_and_a_depot_that_serves_load_neither_torch_nor_flower(
    module: str,
) -> None:
    check = f"import sys, {module}; print(sorted({{'torch', 'flwr', 'ray'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
