"""Child processes that end with their parent, and are started again when they die."""

import ctypes
import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # prctl(2)
LOOK_INTERVAL = 0.2
RESTART_DELAY = 0.5
PATIENCE = 12.0
"""Seconds that children get to end."""


def end_with_parent(how: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn`: the child gets this signal when the thread that started it ends, kill -9 included.
    On Linux only. It is set after privileges are dropped, which would clear it."""
    return functools.partial(_set_death_signal, how, os.getpid()) if sys.platform == "linux" else None


def _set_death_signal(how: signal.Signals, parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:
        os._exit(1)


@dataclass
class Child:
    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    inherit: Sequence[int] = ()
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        # A session of its own: Ctrl-C reaches us, and we tell the children.
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment},
            pass_fds=self.inherit,
            start_new_session=True,
            preexec_fn=end_with_parent(signal.SIGTERM),
        )


def keep_running(children: Sequence[Child], on_start: Callable[[Child], None] = lambda child: None) -> None:
    """Until SIGTERM or SIGINT; then end them."""
    stopping = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        logger.info("%s: ending", signal.Signals(signum).name)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    for child in children:
        child.start()
        on_start(child)
    while not stopping:
        time.sleep(LOOK_INTERVAL)
        for child in children:
            if child.process and child.process.poll() is not None and not stopping:
                logger.warning("%s (pid %d) ended with %d, starting it again", child.name, child.process.pid, child.process.returncode)
                time.sleep(RESTART_DELAY)
                child.start()
                on_start(child)
    for child in children:
        if child.process:
            child.process.terminate()
    deadline = time.monotonic() + PATIENCE
    for child in children:
        if child.process:
            try:
                child.process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                child.process.kill()
