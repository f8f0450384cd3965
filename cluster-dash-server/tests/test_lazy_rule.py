import pytest
from werkzeug.routing import Map, Rule

from cluster_dash_server.web.lazy_rule import LazyRule


def test_addresses_are_made_as_by_plain_routes_and_nothing_is_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_compile, compiled = Rule._compile_builder, list[str]()

    def counted(rule: Rule, append_unknown: bool = True) -> object:
        compiled.append(rule.rule)
        return plain_compile(rule, append_unknown)

    monkeypatch.setattr(Rule, "_compile_builder", counted)
    routes = ("/", "/host/<name>", "/host/<name>/gpu/<int:gpu>", "/static/<path:file>")
    late = Map([LazyRule(route, endpoint=route) for route in routes]).bind("server")
    assert compiled == []
    plain = Map([Rule(route, endpoint=route) for route in routes]).bind("server")
    compiled.clear()

    for route in routes:
        for values in ({}, {"file": "a b/c.js", "v": "1"}, {"name": "gpu01/ä", "gpu": 3, "q": ["x", "y"]}):
            found = []
            for each in (late, plain):
                try:
                    found.append(each.build(route, values))
                except Exception as error:  # what is lacking is told by an error of Werkzeug's
                    found.append(type(error).__name__)
            assert found[0] == found[1], (route, values)
    assert set(compiled) == set(routes)
    assert len(compiled) <= 2 * len(routes)
    assert late.match("/host/gpu01/gpu/3") == plain.match("/host/gpu01/gpu/3")
