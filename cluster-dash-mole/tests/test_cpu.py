import pytest

from cluster_dash_mole.collectors.cpu import (
    CpuCollector,
    CpuTimes,
    busy_percent,
    count_cpus,
    parse_cpu_times,
    parse_loadavg,
)

STAT = """cpu  100 20 30 1000 50 1 2 3 90 10
cpu0 50 10 15 500 25 0 1 2 45 5
cpu1 50 10 15 500 25 1 1 1 45 5
intr 1
btime 5
"""


def test_waiting_for_a_disk_is_not_busy_and_guests_count_once() -> None:
    assert parse_cpu_times(STAT) == CpuTimes(busy=156, total=1206)


def test_an_old_kernels_four_columns_are_enough() -> None:
    assert parse_cpu_times("cpu 1 2 3 4\ncpu0 1 2 3 4\n") == CpuTimes(busy=6, total=10)


@pytest.mark.parametrize("text", ["", "cpu0 1 2 3 4\n", "cpu 1 2\n", "cpu a b c d\n"])
def test_what_is_no_proc_stat_is_said_so(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_cpu_times(text)


def test_the_busy_share_is_that_between_two_readings() -> None:
    assert busy_percent(CpuTimes(100, 1000), CpuTimes(125, 1100)) == 25
    assert busy_percent(CpuTimes(100, 1000), CpuTimes(100, 1000)) is None
    assert busy_percent(CpuTimes(100, 1000), CpuTimes(50, 1100)) is None


def test_processors_and_loads_are_counted() -> None:
    assert count_cpus(STAT) == 2
    assert parse_loadavg("3.25 2.75 2.50 4/1234 56789\n") == [3.25, 2.75, 2.5]


def test_the_part_has_what_the_first_version_sent() -> None:
    part = CpuCollector().collect().parts["cpu"]
    assert isinstance(part, dict)
    assert list(part) == ["cpu_percent", "load_avgs", "num_cpus"]
