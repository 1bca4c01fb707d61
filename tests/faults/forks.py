"""Work in a process that can be killed, forked so that it costs no start."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import torch

N_KILLS = int(os.environ.get("RAGST_SD_KILLS", "10"))
FAILED = 3
_MOST_SECONDS = 120


class Child:
    """A forked process that runs `work` and ends; what it raises goes into a file."""

    def __init__(self, work: Callable[[], object], log: Path) -> None:
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            code = FAILED
            try:
                # The threads of the pools of dask and torch do not live on here, and would be waited for.
                dask.config.set(scheduler="synchronous")
                torch.set_num_threads(1)
                work()
                code = 0
            except BaseException:  # noqa: BLE001
                log.write_text(traceback.format_exc())
            finally:
                os._exit(code)

    def wait(self) -> int:
        """Its exit status; negative for the signal that ended it."""
        deadline = time.monotonic() + _MOST_SECONDS
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        msg = f"The process was still running after {_MOST_SECONDS} s."
        raise TimeoutError(msg)

    def kill(self, after: float) -> int:
        time.sleep(after)
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


def killed_at_random(
    work: Callable[[], object], check: Callable[[], object], tmp_path: Path, *, seconds: float
) -> None:
    """Run `work`, which goes on for ever, and kill it at random moments; `check` looks at what is left each time."""
    rng = np.random.default_rng()
    for _ in range(N_KILLS):
        after = float(rng.uniform(0.01, 1.5) * seconds)
        child = Child(work, tmp_path / "child.log")
        assert child.kill(after) == -signal.SIGKILL, child.log.read_text()
        check()
