"""The processes that tests and benchmarks start: what they are said to have used."""

import os
import sys

from tests.processes import Process, wait_until

BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def test_the_cpu_of_a_process_is_told_finer_than_the_ticks_of_the_kernel() -> None:
    with Process([sys.executable, "-c", f"{BUSY}\ntime.sleep(60)"]) as process:
        wait_until(lambda: process.cpu_seconds() >= 0.2)
        ticks = process.cpu_seconds() * os.sysconf("SC_CLK_TCK")
        assert ticks != round(ticks)


def test_the_cpu_of_children_that_ended_counts() -> None:
    child = "subprocess.run([sys.executable, '-c', sys.argv[1]])"
    with Process([sys.executable, "-c", f"import subprocess, sys, time\n{child}\ntime.sleep(60)", BUSY]) as process:
        wait_until(lambda: len(process.family()) == 1 and process.cpu_seconds() >= 0.2)
