"""The description of the API: every route for machines, with the one schema in it."""

from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import ServerSettings, Settings
from cluster_dash_server.web.openapi import missing


@pytest.fixture(scope="module")
def app() -> Flask:
    return create_app(Settings())


@pytest.fixture(scope="module")
def description(app: Flask) -> dict[str, Any]:
    answer: dict[str, Any] = app.test_client().get("/api/v1/openapi.json").get_json()
    return answer


def test_every_route_for_machines_is_described_and_no_other(app: Flask) -> None:
    assert sorted(missing(app)) == [], "describe it in web/openapi.py"


def test_the_schema_of_a_snapshot_in_it_is_the_one_schema(description: dict[str, Any], make_snapshot: Any) -> None:
    schema = {"$ref": "#/components/schemas/Snapshot", "components": description["components"]}
    check = Draft202012Validator(schema)
    assert check.is_valid(make_snapshot("gpu01"))
    assert not check.is_valid({**make_snapshot("gpu01"), "gpu": {"a": {"index": "first"}}})
    body = description["paths"]["/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Snapshot"}


def test_each_refusal_has_the_one_shape(description: dict[str, Any]) -> None:
    for path in description["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Refusal"}


def test_operations_have_names_of_their_own_and_say_what_they_do(description: dict[str, Any]) -> None:
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"].endswith(".") for operation in operations)


def test_it_names_the_path_under_which_the_site_lives() -> None:
    settings = Settings(server=ServerSettings(public_url="https://www.example.org/dash/"))
    client = create_app(settings).test_client()
    assert client.get("/dash/api/v1/openapi.json").get_json()["servers"] == [{"url": "/dash"}]
