"""Calls in processes of their own: one that crashes, hangs or is killed costs itself only."""

import functools
import importlib
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from fedofa.specialize.export import PRELOADS
from fedofa.specialize.fork_server import Call, ForkServer
from fedofa.supernet.errors import ExportError

NOTHING = ()


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer(NOTHING, timeout_s=1.0) as found:
        yield found


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Call(os.abort, ()), "process was ended by signal 6"),
        (Call(os.kill, (0, signal.SIGKILL)), "process was ended by signal 9"),
        (Call(os._exit, (3,)), "process ended with exit code 3"),
        (Call(sys.exit, (4,)), "process ended with exit code 4"),
        (Call(time.sleep, (60,)), "gave no result within 1 s"),
        (Call(operator.truediv, (1, 0)), "ZeroDivisionError: division by zero"),
    ],
    ids=["abort", "kill", "exit", "sys.exit", "hang", "raise"],
)
def test_a_call_that_goes_wrong_is_an_error_of_its_own_and_the_others_are_done(
    server: ForkServer, bad: Call, message: str
) -> None:
    before = server.pid
    good = Call(operator.mul, (6, 7))
    found = server.run({"first": good, "bad": bad, "last": good})
    assert isinstance(found["bad"], ExportError)
    assert message in str(found["bad"])
    assert (found["first"], found["last"]) == (42, 42)
    assert server.run({"again": good}) == {"again": 42}
    assert server.pid == before
    assert not psutil.Process(server.pid).children()


def test_each_call_has_a_process_of_its_own_and_at_most_two_run_at_once() -> None:
    with ForkServer(NOTHING) as server:
        pids = server.run({str(place): Call(os.getpid, ()) for place in range(3)})
        assert len({*pids.values(), server.pid, os.getpid()}) == 5
        begin = time.monotonic()
        server.run({str(place): Call(time.sleep, (0.4,)) for place in range(4)})
        assert 0.8 <= time.monotonic() - begin < 1.5


def test_large_arguments_and_results_pass_in_both_directions_at_once(server: ForkServer) -> None:
    blob = b"x" * 2**20
    found = server.run({str(place): Call(operator.add, (blob, blob)) for place in range(6)})
    assert [len(part) for part in found.values()] == [2**21] * 6


def test_a_call_begins_after_the_preloads_that_it_needs_and_before_the_others() -> None:
    loads = [functools.partial(importlib.import_module, name) for name in ("this", "colorsys")]
    naps = functools.partial(time.sleep, 0.5)
    seen = "import sys; assert ('this' in sys.modules, 'colorsys' in sys.modules) == "
    with ForkServer((loads[0], naps, loads[1], naps)) as server:
        ended: list[str] = []
        calls = {
            "all": Call(exec, (f"{seen} (True, True)",)),
            "first": Call(exec, (f"{seen} (True, False)",), needs=1),
            "more than there are": Call(exec, (f"{seen} (True, True)",), needs=9),
        }
        assert server.run(calls, ended.append) == dict.fromkeys(calls)
        assert ended[0] == "first"
        # Once all is loaded, it is no matter what a call needs.
        again = Call(exec, (f"{seen} (True, True)",), needs=1)
        assert server.run({"again": again}) == {"again": None}


def test_a_server_that_dies_costs_the_calls_in_progress_and_is_started_again() -> None:
    with ForkServer(NOTHING) as server:
        first = server.pid
        found = server.run({"one": Call(os.kill, (first, signal.SIGKILL))})
        assert "signal 9" in str(found["one"])
        assert server.run({"two": Call(operator.mul, (6, 7))}) == {"two": 42}
        assert server.pid != first


def test_a_process_that_has_imported_the_converters_has_one_thread() -> None:
    """Forking another one would be unsafe."""
    with ForkServer(PRELOADS) as server:
        names = [f"import sys; assert {name!r} in sys.modules" for name in ("litert_torch", "onnx")]
        server.run({"early": Call(exec, ("pass",), needs=1)})
        assert psutil.Process(server.pid).num_threads() == 1
        found = server.run({name: Call(exec, (name,)) for name in names})
        assert set(found.values()) == {None}
        assert psutil.Process(server.pid).num_threads() == 1


HANGING = """
import os, time
from fedofa.specialize.fork_server import Call, ForkServer
server = ForkServer(())
print(server.pid, flush=True)
server.run({"a": Call(time.sleep, (60,))})
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_every_process_is_gone_when_the_caller_is_interrupted_or_killed(
    number: signal.Signals,
) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", HANGING], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert caller.stdout is not None
    with caller:
        server = psutil.Process(int(caller.stdout.readline()))
        end = time.monotonic() + 30
        while not server.children() and time.monotonic() < end:
            time.sleep(0.05)
        (child,) = server.children()
        caller.send_signal(number)
        caller.wait(10)
    gone, alive = psutil.wait_procs([server, child], timeout=10)
    assert not alive
    assert len(gone) == 2
