"""Starting, watching and ending a server's processes, with children that do nothing else."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from fedofa.server.children import Child, Children
from fedofa.supernet.errors import RunError

READY = "import sys, time; print('ready', flush=True); "
SLEEP = READY + "time.sleep(600)"
WITH_GRANDCHILD = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', "
    "'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)']); " + SLEEP
)


def child(name: str, code: str, restarts: int = 5) -> Child:
    command = (sys.executable, "-c", code)
    return Child(name, command, lambda log: "ready" in log, restarts=restarts)


def gone(pid: int, within_s: float = 10) -> bool:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_leaving_ends_every_child_with_all_that_it_started(tmp_path: Path) -> None:
    with Children([child("a", SLEEP), child("b", WITH_GRANDCHILD)], tmp_path) as children:
        children.start(threading.Event())
        pids = children.pids()
        family = psutil.Process(pids["b"]).children() + psutil.Process().children()
        assert list(pids) == ["a", "b"]
        assert len(family) == 4  # a grandchild, a, b and the keeper
    assert all(gone(process.pid, within_s=1) for process in family)


def test_a_child_starts_when_the_one_before_it_is_ready(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    slow = f"import time; time.sleep(0.5); open({str(mark)!r}, 'w').close(); " + SLEEP
    check = f"import os; assert os.path.exists({str(mark)!r}); " + SLEEP
    with Children([child("slow", slow), child("check", check)], tmp_path) as children:
        children.start(threading.Event())


def test_children_that_do_not_wait_start_and_end_beside_each_other(tmp_path: Path) -> None:
    """Each one says that it is ready only when the other runs, and ends only when the other does."""
    meet = (
        "import os, signal, sys, time\n"
        "mine, other = sys.argv[1:]\n"
        "def leave(*_):\n"
        "    open(mine + '.end', 'w').close()\n"
        "    while not os.path.exists(other + '.end'): time.sleep(0.01)\n"
        "    open(mine + '.met', 'w').close()\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "open(mine, 'w').close()\n"
        "while not os.path.exists(other): time.sleep(0.01)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    a, b = str(tmp_path / "mark-a"), str(tmp_path / "mark-b")
    table = [
        Child(name, (sys.executable, "-c", meet, *marks), lambda log: "ready" in log, waits=waits)
        for name, marks, waits in (("a", (a, b), True), ("b", (b, a), False))
    ]
    with Children(table, tmp_path) as children:
        children.start(threading.Event())
    assert Path(a + ".met").exists()
    assert Path(b + ".met").exists()


def test_a_child_that_fails_at_its_start_is_reported_with_its_log(tmp_path: Path) -> None:
    broken = child("depot", "raise SystemExit('no such registry')")
    with (
        Children([child("a", SLEEP), broken], tmp_path) as children,
        pytest.raises(RunError, match=r"(?s)^depot ended .*exit code 1.*depot\.log.*no such reg"),
    ):
        children.start(threading.Event())
    assert psutil.Process().children() == []


def test_a_command_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    missing = Child("depot", ("/no/such/command",))
    with (
        Children([missing], tmp_path) as children,
        pytest.raises(RunError, match="depot: cannot start /no/such/command: No such file"),
    ):
        children.start(threading.Event())


def test_a_crashed_child_is_started_again_and_what_it_left_is_ended(tmp_path: Path) -> None:
    stop = threading.Event()
    with Children([child("a", WITH_GRANDCHILD)], tmp_path) as children:
        children.start(stop)
        watcher = threading.Thread(target=children.watch, args=(stop, 0.02))
        watcher.start()
        first = children.pids()["a"]
        [grandchild] = psutil.Process(first).children()
        os.kill(first, 9)
        end_s = time.monotonic() + 10
        while children.pids()["a"] == first and time.monotonic() < end_s:
            time.sleep(0.02)
        assert psutil.pid_exists(children.pids()["a"])
        assert gone(grandchild.pid)
        stop.set()
        watcher.join(5)


def test_a_child_that_keeps_crashing_ends_the_server(tmp_path: Path) -> None:
    crash = child("a", READY + "time.sleep(0.2); sys.exit('disk full')", restarts=1)
    with Children([crash], tmp_path) as children:
        children.start(threading.Event())
        with pytest.raises(RunError, match=r"(?s)a ended 2 times in a row.*a\.log.*disk full"):
            children.watch(threading.Event(), 0.02)


def test_the_log_of_the_last_server_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with Children([child("a", f"print('{word}'); " + SLEEP)], tmp_path) as children:
            children.start(threading.Event())
    assert "first" in (tmp_path / "a.log.1").read_text()
    assert "second" in (tmp_path / "a.log").read_text()


def test_a_killed_server_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import sys, threading, time; from pathlib import Path; "
        "from tests_children import children; children(Path(sys.argv[1]))"
    )
    script = tmp_path / "tests_children.py"
    script.write_text(
        "import sys, threading, time\n"
        "from fedofa.server.children import Child, Children\n"
        f"CODE = {WITH_GRANDCHILD!r}\n"
        "def children(folder):\n"
        "    table = [Child('a', (sys.executable, '-c', CODE), lambda log: 'ready' in log)]\n"
        "    with Children(table, folder) as running:\n"
        "        running.start(threading.Event())\n"
        "        print('up', flush=True)\n"
        "        time.sleep(600)\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        family = psutil.Process(server.pid).children(recursive=True)
        server.kill()
    assert len(family) == 3
    assert all(gone(process.pid) for process in family)
