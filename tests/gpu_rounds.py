"""Take snapshots as fast as can be, and print the resident memory (KiB) of a mole's processes after each so many.

python gpu_rounds.py ROUNDS EVERY: a line is that of the mole, the nursery and the child.
"""

import json
import os
import sys
import time
from pathlib import Path

from cluster_dash_mole import collectors
from cluster_dash_mole.host import read_host
from cluster_dash_mole.mole import Mole, SystemClock


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [each for child in children for each in descendants(child)]


def main() -> None:
    rounds, every = int(sys.argv[1]), int(sys.argv[2])
    clock = SystemClock()
    mole = Mole(
        host=read_host(), collectors=collectors.build(interval=5, clock=clock), lanes=[], interval=5, clock=clock
    )
    for count in range(1, rounds + 1):
        document = mole.snapshot().document()
        json.dumps(document)
        if count % every == 0:
            sizes = [resident_kib(pid) for pid in (os.getpid(), *descendants(os.getpid()))]
            sys.stdout.write(f"{count} {time.process_time():.0f} {' '.join(map(str, sizes))}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
