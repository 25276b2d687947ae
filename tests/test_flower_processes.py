"""Real Flower processes on loopback: serve, join, submit, and what is left when they end."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import flower_site as site
import httpx
import psutil
import pytest
from fedofa.client.join import JoinOptions, check
from fedofa.server import serve as serving
from fedofa.server import submit
from fedofa.server.serve import ServeOptions, read_addresses
from fedofa.supernet.errors import RunError, UsageError
from test_gateway import self_signed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[site.Server]:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with site.server(tmp_path_factory.mktemp("state")) as found:
        started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        yield found
    assert len(started) >= 5
    assert site.left(started) == []


@pytest.mark.timeout(120)
def test_devices_that_raise_crash_or_hang_get_an_error_reply_and_go_on(
    server: site.Server, tmp_path: Path
) -> None:
    """Three rounds with four devices; in the second, three of them misbehave."""
    tricks = {"good": "", "thrower": "raise", "victim": "kill", "sleeper": "hang"}
    devices = [
        site.device(
            server.addresses.devices,
            node_config={"device": name, "trick": trick},
            task_timeout_s=2.0,
        )
        for name, trick in tricks.items()
    ]
    try:
        assert len({site.node_id(device) for device in devices}) == 4
        out = tmp_path / "out"
        settings = site.config(out, nodes=4, rounds=3, **{"trick-round": 2, "ttl": 30.0})
        run = submit.submit(server.addresses.control, settings, site.APPS)
        ticks: list[submit.RunState] = []
        assert submit.wait(server.addresses.control, run, ticks.append, 0.2).finished
        assert {tick.run_id for tick in ticks} == {run}
        running = [site.family(device.pid) for device in devices]
    finally:
        errors = [site.end(device) for device in devices]

    first, second, third = site.rounds(out)
    assert first["devices"] == third["devices"] == sorted(tricks)
    assert first["greetings"] == ["hello"]
    assert second["devices"] == ["good"]
    reasons = sorted(site.errors(second))
    assert [code for code, _ in reasons] == [2, 8, 8]
    assert "ValueError" in reasons[0][1]
    assert "no such data folder" in reasons[0][1]
    assert "took too long" in reasons[1][1] + reasons[2][1]
    assert "killed by signal 9" in reasons[1][1] + reasons[2][1]
    # A ClientApp's state outlives its process; an ill-fated message does not change it.
    assert (first["seen"], third["seen"]) == ([1, 1, 1, 1], [2, 2, 2, 3])
    # One process for all messages, and a new one only after a crash.
    assert len(set(first["pids"]) & set(third["pids"])) == 2
    assert len(running[0]) == 3
    assert [device.returncode for device in devices] == [143] * 4
    assert "ValueError: no such data folder" in errors[1]
    assert site.left([process for tree in running for process in tree]) == []


def test_a_failed_server_app_is_reported_with_its_log(server: site.Server, tmp_path: Path) -> None:
    run = submit.submit(server.addresses.control, site.config(tmp_path / "o", fail=True), site.APPS)
    with pytest.raises(RunError, match=r"(?s)failed: .*the job file is not there.*Traceback"):
        submit.wait(server.addresses.control, run, poll_s=0.2)


def test_a_run_can_be_stopped(server: site.Server, tmp_path: Path) -> None:
    control = server.addresses.control
    run = submit.submit(control, site.config(tmp_path / "out", nodes=5), site.APPS)
    end_s = time.monotonic() + 30
    while submit.run_state(control, run).status != "running" and time.monotonic() < end_s:
        time.sleep(0.1)
    submit.stop_run(control, run)
    with pytest.raises(RunError, match=f"run {run} stopped"):
        submit.wait(control, run, poll_s=0.2)
    with pytest.raises(RunError, match="already finished"):
        submit.stop_run(control, run)


def test_requests_about_no_run_or_to_no_server_are_answered_clearly() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(RunError, match=f"no answer from the server at {address}"):
            submit.run_state(address, 1)


def test_an_unknown_run_is_an_error(server: site.Server) -> None:
    with pytest.raises(RunError, match=r"12345|refused"):
        submit.run_state(server.addresses.control, 12345)


@pytest.mark.parametrize(
    "path", ["/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs", "/openapi.json"]
)
def test_devices_cannot_reach_what_runs_code(server: site.Server, path: str) -> None:
    headers = {"content-type": "application/protobuf", "accept": "application/protobuf"}
    inside = httpx.post(f"http://{server.addresses.control}{path}", content=b"", headers=headers)
    outside = httpx.post(f"http://{server.addresses.devices}{path}", content=b"", headers=headers)
    assert (inside.status_code == 404, outside.status_code) == (False, 404)


def test_the_superlink_listens_on_loopback_only(server: site.Server) -> None:
    port = int(server.addresses.control.split(":")[1])
    listening = {
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {"127.0.0.1"}


def test_a_running_server_is_found_by_its_state_folder(server: site.Server, tmp_path: Path) -> None:
    assert read_addresses(server.options.state) == server.addresses
    with pytest.raises(UsageError, match=f"no server is running with state folder {tmp_path}"):
        read_addresses(tmp_path)


def test_a_second_server_on_the_same_state_or_port_is_refused(
    server: site.Server, tmp_path: Path
) -> None:
    same_state = ServeOptions(server.options.state, tmp_path, port=0, depot_port=0)
    with pytest.raises(UsageError, match="another server runs with state folder"):
        serving.run_server(same_state, threading.Event())
    port = int(server.addresses.devices.split(":")[1])
    same_port = ServeOptions(tmp_path / "state", tmp_path, port=port)
    with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is in use"):
        serving.run_server(same_port, threading.Event())


def test_a_device_killed_outright_takes_its_processes_with_it(server: site.Server) -> None:
    device = site.device(server.addresses.devices)
    site.node_id(device)
    processes = site.family(device.pid)
    site.end(device, signal.SIGKILL)
    assert len(processes) == 2
    assert site.left(processes) == []


@pytest.mark.timeout(60)
def test_ctrl_c_ends_a_server_with_all_it_started(tmp_path: Path) -> None:
    process = _serve(tmp_path)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("127.0.0.1:")
        processes = site.family(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert len(processes) == 6
    assert site.left(processes) == []
    assert not (tmp_path / serving.ADDRESSES_FILE).exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 is not loopback: give --tls-cert"),
        ({"depot_host": "0.0.0.0"}, "--depot-host 0.0.0.0 is not loopback"),
        ({"tls_cert": Path("here.pem")}, "both a certificate and its key"),
        ({"token_file": Path("nowhere")}, "--token-file: no such file: nowhere"),
    ],
)
def test_unsafe_or_impossible_options_are_refused_before_anything_starts(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    options = ServeOptions(tmp_path / "state", tmp_path, **fields)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        serving.run_server(options, threading.Event())
    assert not (tmp_path / "state").exists()


def test_insecure_says_that_other_machines_may_connect_unencrypted(tmp_path: Path) -> None:
    serving.check(ServeOptions(tmp_path, tmp_path, host="0.0.0.0", insecure=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"server": "nowhere"}, "HOST:PORT expected"),
        ({"server": "a:99999"}, "HOST:PORT expected"),
        ({"root_certificates": Path("no.pem")}, "no such file: no.pem"),
        ({"root_certificates": Path("no.pem"), "insecure": True}, "exclude each other"),
        ({"node_config": {"a": [1]}}, "node config 'a'"),
    ],
)
def test_a_devices_wrong_options_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(JoinOptions(**{"server": "127.0.0.1:9092", **fields}))  # type: ignore[arg-type]


def test_an_app_that_cannot_be_loaded_ends_a_device_before_it_joins(server: site.Server) -> None:
    device = site.device(server.addresses.devices, client_app="toy_flower_app:server_app")
    with device:
        errors = device.communicate(timeout=30)[1]
    assert (device.returncode, "a flwr ClientApp is expected" in errors) == (2, True)


def test_a_device_gives_up_on_a_server_that_never_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        device = site.device(address, retry_for_s=1.0)
        with device:
            errors = device.communicate(timeout=40)[1]
    assert device.returncode == 1
    assert f"no connection to {address} for 1 s" in errors


def test_a_run_config_that_flower_cannot_carry_is_refused() -> None:
    with pytest.raises(UsageError, match="run config 'job'"):
        submit.bundle({"job": None}, site.APPS)  # type: ignore[dict-item]
    assert submit.bundle({"a": 1}, site.APPS) == submit.bundle({"a": 2}, site.APPS)


@pytest.mark.slow
def test_a_run_survives_a_killed_superlink(tmp_path: Path) -> None:
    with site.server(tmp_path / "state") as server:
        devices = [site.device(server.addresses.devices) for _ in range(2)]
        try:
            nodes = [site.node_id(device) for device in devices]
            out = tmp_path / "out"
            settings = site.config(out, nodes=2, rounds=6, pause=1.0)
            run = submit.submit(server.addresses.control, settings, site.APPS)
            _await(lambda: out.exists() and len(site.rounds(out)) >= 2)
            [superlink] = [
                process
                for process in psutil.Process().children()
                if "flower-superlink" in " ".join(process.cmdline())
            ]
            superlink.kill()
            assert submit.wait(server.addresses.control, run).result == "completed"
        finally:
            rest = [site.end(device) for device in devices]
        assert [len(found["devices"]) for found in site.rounds(out)] == [2] * 6
        # Nobody had to join again.
        assert (len(set(nodes)), [text.count("joined") for text in rest]) == (2, [0, 0])


@pytest.mark.slow
def test_devices_come_back_to_a_server_that_was_started_again(tmp_path: Path) -> None:
    with site.server(tmp_path / "one") as first:
        address = first.addresses.devices
        device = site.device(address)
        before = site.node_id(device)
    try:
        with site.server(tmp_path / "two", port=int(address.split(":")[1])):
            assert site.node_id(device) != before
    finally:
        site.end(device)


@pytest.mark.slow
def test_a_run_goes_through_tls(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    with site.server(tmp_path / "state", tls_cert=certificate, tls_key=key) as server:
        device = site.device(server.addresses.devices, root_certificates=str(certificate))
        try:
            site.node_id(device)
            out = tmp_path / "out"
            run = submit.submit(server.addresses.control, site.config(out), site.APPS)
            submit.wait(server.addresses.control, run)
        finally:
            site.end(device)
    assert len(site.rounds(out)[0]["devices"]) == 1


@pytest.mark.slow
def test_a_killed_server_leaves_no_flower_process(tmp_path: Path) -> None:
    process = _serve(tmp_path)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        control = read_addresses(tmp_path).control
        run = submit.submit(control, site.config(tmp_path / "out", nodes=3), site.APPS)
        _await(lambda: submit.run_state(control, run).status == "running")
        processes = site.family(process.pid)
        process.kill()
    assert site.left(processes) == []


@pytest.mark.slow
def test_the_same_apps_run_on_ray(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import json, sys, toy_flower_app as toy; "
        "from fedofa.server.simulate_ray import run_on_ray; "
        "run_on_ray(toy.server_app, toy.client_app, 3, json.loads(sys.argv[1]))"
    )
    settings = json.dumps(site.config(out, nodes=3, rounds=2))
    done = subprocess.run(
        [sys.executable, "-c", code, settings],
        env=site.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "DEPRECATED" not in done.stderr + done.stdout
    first, second = site.rounds(out)
    assert first["devices"] == ["0", "1", "2"]
    assert (first["greetings"], second["seen"]) == (["hello"], [2, 2, 2])


def _serve(state: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", site.SERVE, str(state), json.dumps(site.FAKE_DEPOT)],
        stdout=subprocess.PIPE,
        env=site.ENVIRONMENT,
        text=True,
    )


def _await(condition: object, within_s: float = 60) -> None:
    end_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < end_s:  # type: ignore[operator]
        time.sleep(0.1)
