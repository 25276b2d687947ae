"""Publication is atomic, files are stored once by content, and names never become paths."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from artifacts import Died, Disk, draft, sha256, write
from fedofa.protos import durable
from fedofa.protos.manifest import FileKind, Manifest
from fedofa.server.registry import Registry
from fedofa.supernet.errors import ArtifactError, DepotError, FedofaError
from hypothesis import given
from hypothesis import strategies as st

OLD: dict[FileKind, bytes] = {"tflite_int8": b"old int8" * 50, "onnx_int8": b"old onnx" * 60}
NEW: dict[FileKind, bytes] = {"tflite_int8": b"new int8" * 50, "onnx_int8": b"new onnx" * 60}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "registry") as opened:
        yield opened


def publish(registry: Registry, contents: dict[FileKind, bytes], **names: str) -> Manifest:
    files = write(registry.root.parent / "source", contents)
    return registry.publish(draft(contents, **names), files)


def blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "blobs").glob("*/*")}


def check_whole(root: Path) -> list[int]:
    """Every visible version has all of its files with the right bytes; returns the versions."""
    with Registry(root) as registry:
        versions = registry.versions("net")
        for version in versions:
            for entry in registry.manifest("net", version).files:
                assert sha256(registry.blob_path(entry.sha256).read_bytes()) == entry.sha256
        if versions:
            manifest, digest = registry.resolve("board")
            assert digest == sha256(manifest.to_json())
            assert manifest.version == versions[-1]
        return versions


def test_a_published_model_resolves_for_its_class(registry: Registry) -> None:
    published = publish(registry, OLD)
    assert published.version == 1
    assert registry.resolve("board") == (published, sha256(published.to_json()))
    assert registry.models() == ["net"]
    for kind, data in OLD.items():
        assert registry.blob_path(published.file(kind).sha256).read_bytes() == data


def test_versions_grow_per_model_and_the_channel_follows(registry: Registry) -> None:
    assert [publish(registry, OLD).version, publish(registry, NEW).version] == [1, 2]
    assert publish(registry, OLD, model="other", device_class="phone").version == 1
    assert registry.versions("net") == [1, 2]
    assert registry.resolve("board")[0].version == 2
    assert [(one.model, one.version, one.channels) for one in registry.listing("board")] == [
        ("net", 2, ("stable",)),
        ("net", 1, ()),
    ]


def test_a_channel_can_be_pointed_at_an_older_version(registry: Registry) -> None:
    publish(registry, OLD)
    publish(registry, NEW)
    registry.promote("board", "stable", "net", 1)
    assert registry.resolve("board")[0].version == 1
    with pytest.raises(DepotError, match="unknown_version"):
        registry.promote("phone", "stable", "net", 1)


def test_a_version_published_to_no_channel_is_not_resolved(registry: Registry) -> None:
    publish(registry, OLD)
    files = write(registry.root.parent / "source", NEW)
    assert registry.publish(draft(NEW), files, channel=None).version == 2
    assert registry.resolve("board")[0].version == 1


def test_the_same_content_is_stored_once(registry: Registry) -> None:
    for _ in range(3):
        publish(registry, OLD)
    assert blobs(registry.root) == {sha256(data) for data in OLD.values()}


def test_publishing_again_repairs_a_damaged_file(registry: Registry) -> None:
    path = registry.blob_path(publish(registry, OLD).file("tflite_int8").sha256)
    path.write_bytes(b"x" * path.stat().st_size)
    publish(registry, OLD)
    assert path.read_bytes() == OLD["tflite_int8"]


@pytest.mark.parametrize("how", ["changed", "longer", "missing", "kind"])
def test_files_that_are_not_what_the_manifest_says_are_not_published(
    registry: Registry, how: str
) -> None:
    publish(registry, OLD)
    files = write(registry.root.parent / "source", NEW)
    if how == "changed":
        files["onnx_int8"].write_bytes(NEW["onnx_int8"][::-1])
    elif how == "longer":
        files["onnx_int8"].write_bytes(NEW["onnx_int8"] + b"!")
    elif how == "missing":
        files["onnx_int8"].unlink()
    else:
        del files["onnx_int8"]
    with pytest.raises(ArtifactError, match="publish"):
        registry.publish(draft(NEW), files)
    assert registry.versions("net") == [1]
    assert not list((registry.root / "drafts").iterdir())


@pytest.mark.parametrize("dies", [False, True], ids=["error", "death"])
def test_a_failure_at_any_step_leaves_the_whole_version_or_nothing(
    tmp_path: Path, dies: bool
) -> None:
    files = write(tmp_path / "new", NEW)
    for step in range(1, 200):
        root = tmp_path / f"registry-{step}"
        with Registry(root) as registry:
            publish(registry, OLD)
            with pytest.MonkeyPatch.context() as patch:
                disk = Disk(step, dies).watch(patch)
                try:
                    registry.publish(draft(NEW), files)
                except (FedofaError, OSError, Died):
                    assert disk.failed
            if not disk.failed:
                break
        assert check_whole(root) in ([1], [1, 2])
        with Registry(root) as registry:
            after = publish(registry, NEW).version
            assert after == registry.versions("net")[-1]
            registry.sweep()
            assert blobs(root) == {sha256(data) for data in [*OLD.values(), *NEW.values()]}
            assert not list((root / "drafts").iterdir())
    assert step > 10, "the disk was not watched"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from artifacts import draft, write
from fedofa.server.registry import Registry
from test_registry import NEW, OLD, check_whole

top = Path(sys.argv[1])
files, old = write(top / "new", NEW), write(top / "old", OLD)
step, seen = 0, set()
while True:
    step += 1
    root = top / f"registry-{step}"
    child = os.fork()
    if child == 0:
        registry = Registry(root)
        registry.publish(draft(OLD), old)
        left = step
        def count(frame, event, arg):
            global left
            if event == "c_call":
                home = getattr(arg, "__module__", None) or type(arg.__self__).__module__
                if home in ("posix", "sqlite3", "_io", "_sqlite3"):
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(count)
        registry.publish(draft(NEW), files)
        sys.setprofile(None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    versions = check_whole(root)
    assert versions in ([1], [1, 2]), versions
    seen.add(tuple(versions))
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
assert seen == {(1,), (1, 2)} and step > 30, (seen, step)
print("steps", step)
"""


def test_kill_9_at_any_system_call_leaves_the_whole_version_or_nothing(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), here],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "steps" in done.stdout


def test_the_number_of_a_version_is_never_given_twice(registry: Registry) -> None:
    publish(registry, OLD)
    numbers: list[int] = []

    def some() -> None:
        with Registry(registry.root) as mine:
            files: dict[FileKind, Path] = {
                "tflite_int8": registry.root.parent / "source" / "model.int8.tflite"
            }
            contents: dict[FileKind, bytes] = {"tflite_int8": OLD["tflite_int8"]}
            numbers.extend(mine.publish(draft(contents), files).version for _ in range(5))

    threads = [threading.Thread(target=some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(numbers) == list(range(2, 22))
    assert registry.versions("net") == list(range(1, 22))


def test_sweep_removes_only_what_no_version_names(registry: Registry) -> None:
    publish(registry, OLD)
    orphan = registry.root / "blobs" / "ab" / ("ab" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"orphan")
    (registry.root / "drafts" / "left").write_bytes(b"1234")
    swept = registry.sweep()
    assert (swept.files, swept.size_bytes) == (2, 10)
    assert blobs(registry.root) == {sha256(data) for data in OLD.values()}


def test_a_sweep_waits_for_a_publication_under_way(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, go_on = threading.Event(), threading.Event()
    move = durable.move

    def slow(source: Path, target: Path) -> None:
        move(source, target)
        moved.set()
        assert go_on.wait(30)

    monkeypatch.setattr(durable, "move", slow)
    publishing = threading.Thread(target=publish, args=(registry, OLD))
    sweeping = threading.Thread(target=registry.sweep)
    publishing.start()
    assert moved.wait(30)
    sweeping.start()
    sweeping.join(0.2)
    assert sweeping.is_alive()
    go_on.set()
    publishing.join(60)
    sweeping.join(60)
    assert check_whole(registry.root) == [1]


@given(
    st.text(max_size=300) | st.sampled_from(["../../etc/passwd", "/etc/passwd", "a\0b", "A" * 64])
)
def test_no_text_but_a_published_digest_gives_a_path(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "names"
    with Registry(root) as registry:
        for ask in (registry.blob_path, registry.resolve, registry.versions):
            with suppress(DepotError):
                assert ask(text) == []


def test_an_unpublished_file_is_not_served(registry: Registry) -> None:
    orphan = registry.root / "blobs" / "ab" / ("ab" * 32)
    orphan.parent.mkdir()
    orphan.write_bytes(b"orphan")
    with pytest.raises(DepotError, match="unknown_blob"):
        registry.blob_path(orphan.name)


def test_a_file_cut_short_on_disk_is_noticed(registry: Registry) -> None:
    path = registry.blob_path(publish(registry, OLD).file("tflite_int8").sha256)
    os.truncate(path, 10)
    with pytest.raises(ArtifactError, match="cut short"):
        registry.blob_path(path.name)


def test_an_unknown_class_is_answered_with_the_known_ones(registry: Registry) -> None:
    publish(registry, OLD)
    with pytest.raises(DepotError, match="there are: board") as caught:
        registry.resolve("phone")
    assert caught.value.code == "unknown_class"


def test_a_folder_that_cannot_be_a_registry_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="registry"):
        Registry(tmp_path / "file")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "registry.db").write_bytes(b"no database" * 100)
    with pytest.raises(ArtifactError, match="not a database"):
        Registry(tmp_path / "broken")
