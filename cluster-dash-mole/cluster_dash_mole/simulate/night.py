"""The faults of a simulated night: which host has which, and when. Times are in s since the night began."""

import enum
from random import Random

HOSTS_A_DEAL = 50
"""Each fault comes once in so many hosts."""


class Fault(enum.Enum):
    """What is wrong with a host; the most telling first, for fleets with fewer hosts than faults."""

    LOST_GPU = "a GPU falls off the bus: Xid 79"
    HELD = "somebody left notebooks behind: memory without work"
    SILENT = "it falls silent, for half an hour"
    HOT = "a GPU is too hot and slows itself down"
    NO_DRIVER = "its driver is not loaded"
    FULL_DISK = "a disk is nearly full"
    COLLECTOR = "a file system does not answer"
    REBOOT = "it reboots"


SILENT_SECONDS = 1800.0
REBOOT_AFTER_SECONDS, REBOOT_SECONDS = 60.0, 90.0


def deal(seed: int, hosts: int) -> dict[int, Fault]:
    """Return the fault of each host that has one, by its place in the fleet."""
    dealt: dict[int, Fault] = {}
    for first in range(0, hosts, HOSTS_A_DEAL):
        places = list(range(first, min(first + HOSTS_A_DEAL, hosts)))
        Random(f"{seed}/night/{first}").shuffle(places)
        dealt.update(zip(places, Fault, strict=False))
    return dealt


def lost_at(interval_seconds: float) -> float:
    """Return when the GPU is lost: after the server has seen it, or it would not be missed."""
    return 10 + interval_seconds


def reboots_at(interval_seconds: float) -> float:
    """Return when the host goes down to reboot; it is back `REBOOT_SECONDS` later."""
    return REBOOT_AFTER_SECONDS + interval_seconds


def silent(fault: Fault | None, elapsed: float, interval_seconds: float) -> bool:
    """Say whether the host posts nothing now; each posts at least once before."""
    if fault is Fault.SILENT:
        return 2 * interval_seconds <= elapsed < 2 * interval_seconds + SILENT_SECONDS
    if fault is Fault.REBOOT:
        return 0 <= elapsed - reboots_at(interval_seconds) < REBOOT_SECONDS
    return False
