"""The text format: what Prometheus' own readers make of it."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as open_metrics_parser

from cluster_dash_server.prometheus.exposition import OPEN_METRICS_END, Family, labels, section, wants_open_metrics

Read = Callable[[str], Iterable[Any]]
read_text: Read = text_parser.text_string_to_metric_families
read_open_metrics: Read = open_metrics_parser.text_string_to_metric_families
GAUGE = Family(name="cluster_dash_things", kind="gauge", help='Things, "all"\nof them \\ here.')
COUNTER = Family(name="cluster_dash_events_total", kind="counter", help="Things.")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_comes_back_from_a_label(text: str) -> None:
    written = section(GAUGE, [(labels({"host": text}), 1)], open_metrics=True) + OPEN_METRICS_END
    assert [sample.labels for each in read_open_metrics(written) for sample in each.samples] == [{"host": text}]


@pytest.mark.parametrize("open_metrics", [False, True])
def test_a_family_has_its_kind_and_its_help_in_both_formats(open_metrics: bool) -> None:
    read = read_open_metrics if open_metrics else read_text
    text = "".join(section(family, [("", 3.5)], open_metrics=open_metrics) for family in (GAUGE, COUNTER))
    gauge, counter = read(text + OPEN_METRICS_END * open_metrics)
    assert (gauge.type, counter.type) == ("gauge", "counter")
    assert gauge.documentation == GAUGE.help
    assert [sample.name for sample in counter.samples] == ["cluster_dash_events_total"]


def test_a_counter_whose_name_does_not_say_so_is_unknown_to_open_metrics() -> None:
    family = Family(name="DCGM_ENERGY", kind="counter", help="Energy.")
    (read,) = read_open_metrics(section(family, [("", 3)], open_metrics=True) + OPEN_METRICS_END)
    assert read.type == "unknown"


def test_what_nobody_knows_is_absent() -> None:
    assert section(GAUGE, [("", None)], open_metrics=False) == ""
    assert labels({"gpu": "0", "uuid": None, "model": ""}) == '{gpu="0"}'


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),
        ("application/openmetrics-text; q=0.3, text/plain; q=0.6", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=much", False),
    ],
)
def test_open_metrics_is_given_to_who_prefers_it(accept: str | None, wanted: bool) -> None:
    assert wants_open_metrics(accept) is wanted
