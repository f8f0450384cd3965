"""Make and kill processes at a rate, and tell the stand-in for NVIDIA's library that they compute.

python churn.py CONFIG RATE: each process is called c<pid>, and belongs to one of two users where we are root.
"""

import contextlib
import os
import signal
import sys
import time
from collections import deque
from pathlib import Path

USERS = (1001, 4_000_000_001)
LIFE_SECONDS = 0.25


def child() -> None:
    pid = os.getpid()
    Path("/proc/self/comm").write_text(f"c{pid}")
    if os.getuid() == 0:
        os.setuid(USERS[pid % 2])
    time.sleep(8 * LIFE_SECONDS)  # so that none outlives the one that kills them by much
    os._exit(0)


def main() -> None:
    config, rate = Path(sys.argv[1]), float(sys.argv[2])
    head = config.read_text()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    alive: deque[tuple[int, float]] = deque()
    started, made, told = time.monotonic(), 0, 0.0
    while os.getppid() != 1:
        now = time.monotonic()
        while made < (now - started) * rate:
            pid = os.fork()
            if pid == 0:
                child()
            alive.append((pid, now))
            made += 1
        while alive and now - alive[0][1] > LIFE_SECONDS:
            with contextlib.suppress(ProcessLookupError):
                os.kill(alive.popleft()[0], signal.SIGKILL)
        if now - told > 0.05:
            told = now
            fresh = config.with_suffix(".new")
            fresh.write_text(head + "".join(f"proc {pid % 8} {pid} 10 C\n" for pid, _ in alive))
            fresh.rename(config)
        time.sleep(0.004)


if __name__ == "__main__":
    main()
