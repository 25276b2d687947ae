"""Settings of every test process: one thread, Flower silent, and hypothesis without deadlines."""

import fcntl
import os
import signal
from pathlib import Path

# A shell's background job is started with Ctrl-C ignored, and what it starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402 - it reads the variables above
from hypothesis import HealthCheck, Phase, settings  # noqa: E402

# Sums depend on the number of threads; the machine has few cores, and other tests use them.
torch.set_num_threads(1)

settings.register_profile(
    "fedofa",
    deadline=None,
    max_examples=50,
    derandomize=True,
    # No shrinking: it rebuilds networks for minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fedofa")


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small run, trained and specialized; tests copy it before they change it."""
    from reported import make

    base = tmp_path_factory.getbasetemp()
    # Test processes that run side by side share it: whoever comes first makes it.
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    done = root / "reported.txt"
    with (root / "reported.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            done.write_text(str(make(root / "reported")))
    return Path(done.read_text())
