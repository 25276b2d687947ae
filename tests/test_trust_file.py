"""A device's trust file: what is wrong with it is named, and what it says holds in a run."""

import base64
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from fedofa.client.enrol import trusting
from fedofa.client.privacy.trust_file import read_trust
from fedofa.supernet.errors import RunError, UsageError
from fleets import Run, grid_of, small_fleet
from test_secure_rounds import CLASSES, Letters, secure

NAMES = ("dev-0", "dev-1", "dev-2", "dev-3")


def base64_of(key: Ed25519PublicKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return base64.b64encode(key.public_bytes(serialization.Encoding.DER, form)).decode()


def write_private(key: Ed25519PrivateKey, path: Path) -> None:
    form = serialization.PrivateFormat.PKCS8
    none = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, none))
    path.chmod(0o600)


def enrolled(folder: Path, names: tuple[str, ...] = NAMES, least_cover: int = 2) -> dict[str, Path]:
    """Device → its trust file: a key each, and a list of all that the operator signed."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    operator = Ed25519PrivateKey.generate()
    listed = "".join(f'"{name}" = "{base64_of(key.public_key())}"\n' for name, key in keys.items())
    (folder / "devices.toml").write_text(listed)
    (folder / "devices.toml.sig").write_bytes(operator.sign(listed.encode()))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = operator.public_key().public_bytes(serialization.Encoding.PEM, form)
    (folder / "operator.pub").write_bytes(pem)
    found = {}
    for name, key in keys.items():
        write_private(key, folder / f"{name}.key")
        found[name] = folder / f"{name}.toml"
        found[name].write_text(
            f'least_cover = {least_cover}\nidentity = "{name}.key"\n'
            'devices = "devices.toml"\noperator = "operator.pub"\n'
        )
    return found


def run_with(folder: Path, files: dict[str, Path], letters: Letters) -> Run:
    devices = [
        replace(device, trust=str(files[device.name])) if device.name in files else device
        for device in small_fleet(folder, CLASSES)
    ]
    run = Run(folder, secure(), grid_of(devices, letters))
    run.training.begin()
    return run


def test_devices_that_the_operator_listed_sum_together_and_leave_out_a_stranger(
    tmp_path: Path,
) -> None:
    run = run_with(tmp_path / "all", enrolled(tmp_path / "keys"), Letters()).start()
    assert run.events("round")[0]["accepted"] == 4
    # dev-3 signs nothing: the others share no secret in its presence.
    files = enrolled(tmp_path / "three")
    del files["dev-3"]
    letters = Letters()
    with pytest.raises(RunError, match="abandoned"):
        run_with(tmp_path / "stranger", files, letters).start()
    assert not any(letter == "mask" for _, letter, _ in letters.arrived)


def test_a_device_takes_part_in_no_sum_over_fewer_devices_than_it_asks(tmp_path: Path) -> None:
    path = tmp_path / "trust.toml"
    path.write_text("least_cover = 3\n")
    run = run_with(tmp_path / "run", {"dev-1": path}, Letters()).start()
    (event,) = run.events("no_update")
    assert event["device"] == "dev-1"
    assert "least_cover = 2; this device asks 3" in event["reason"]


def test_a_trust_file_is_read_before_a_device_joins(tmp_path: Path) -> None:
    (device, *_) = small_fleet(tmp_path)
    assert trusting(device, None) is device
    with pytest.raises(UsageError, match="no-such"):
        trusting(device, tmp_path / "no-such.toml")
    files = enrolled(tmp_path / "keys")
    assert trusting(device, files["dev-0"]).trust == str(files["dev-0"])


def test_what_is_wrong_with_a_trust_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trust.toml"
    for text, words in (
        ("least_cover = 1", "least_cover"),
        ("leest_cover = 2", "leest_cover.*allowed: least_cover"),
        ("identity = 'a.key'", "devices, operator missing"),
        ("identity = ", "trust file"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_trust.__wrapped__(path, "dev-0")


def test_a_list_that_was_changed_and_keys_that_are_none_are_refused(tmp_path: Path) -> None:
    files = enrolled(tmp_path)
    read, path = read_trust.__wrapped__, files["dev-0"]
    assert read(path, "dev-0").known is not None
    with pytest.raises(UsageError, match="no key for this device, dev-9"):
        read(path, "dev-9")
    with pytest.raises(UsageError, match="another key for this device, dev-1"):
        read(path, "dev-1")
    listed = (tmp_path / "devices.toml").read_bytes()
    (tmp_path / "devices.toml").write_bytes(listed + b'"evil" = "AAAA"\n')
    with pytest.raises(UsageError, match="not the operator's signature"):
        read(path, "dev-0")
    (tmp_path / "devices.toml").write_bytes(listed)
    (tmp_path / "dev-0.key").chmod(0o644)
    with pytest.raises(UsageError, match="others may read it"):
        read(path, "dev-0")
    (tmp_path / "dev-0.key").chmod(0o600)
    (tmp_path / "dev-0.key").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="is no key"):
        read(path, "dev-0")
    (tmp_path / "operator.pub").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"operator\.pub is no key"):
        read(files["dev-1"], "dev-1")
