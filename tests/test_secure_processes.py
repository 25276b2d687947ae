"""Secure sums between real processes: Flower's server, devices that are killed, and Ray."""

import contextlib
import json
from pathlib import Path

import pytest
from test_by_hand import CONFIG, fedofa, server, started, weights_of

SECURE = """
[aggregation]
weights = "uniform"

[secure]
least_cover = 2
threshold = 2
letter_s = 120.0

[classes.big]"""
NAMES = ("big-0", "small-0", "small-1")


def config_in(folder: Path, rounds: int = 2) -> Path:
    text = CONFIG.format(rounds=rounds).replace("min_clients = 2", "min_clients = 3")
    text = text.replace("\n[classes.big]", SECURE).replace("small = 1 }", "small = 2 }")
    path = folder / "fedofa.toml"
    path.write_text(text)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_secure_run_over_flower_ends_with_the_weights_of_a_simulated_one(tmp_path: Path) -> None:
    config, state = config_in(tmp_path), tmp_path / "state"
    place = ("--config", str(config), "--state", str(state))
    with server(tmp_path) as addresses, contextlib.ExitStack() as stack:
        for number, name in enumerate(NAMES):
            stack.enter_context(
                started(
                    tmp_path / f"{name}.log", "fedofa.client.cli", "join",
                    "--server", addresses["devices"], "--name", name,
                    "--device-class", name.partition("-")[0],
                    "--data", "fedofa.client.datasets:digits",
                    "--client", str(number), "--clients", "3",
                    "--memory", str(tmp_path / "memory"),
                )
            )  # fmt: skip
        finished = json.loads(fedofa("run", *place, "--json", timeout_s=600).stdout)
    folder = state / "runs" / "tiny"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["devices"] for e in events if e["event"] == "secure_sum"] == [3, 3]
    head = json.loads(fedofa("verify", "--ledger", str(folder), "--json").stdout)
    assert (head["ok"], head["recorded"]) == (True, 2)
    simulated = tmp_path / "simulated"
    fedofa("simulate", "--config", str(config), "--state", str(simulated), "--json")
    assert finished["weights"] == weights_of(state) == weights_of(simulated)
    # Devices keep their secrets in memory: what they have on disk has no such file.
    assert not [path for path in (tmp_path / "memory").rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_keeps_what_devices_must_remember_between_letters(tmp_path: Path) -> None:
    config, found = config_in(tmp_path), []
    for backend in ("local", "ray"):
        state = tmp_path / backend
        fedofa(
            "simulate", "--config", str(config), "--state", str(state), "--backend", backend,
            "--json", timeout_s=600,
        )  # fmt: skip
        found.append(weights_of(state))
    assert found[0] == found[1]
