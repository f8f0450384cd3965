"""Who may look: each route names the scope it needs, and one check stands in front of all of them."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

Scope = Literal["public", "ingest", "state:read", "history:read", "metrics:read"]
"""What a route asks of its caller.

public: nothing (health, style, scripts). ingest: a host's secret, checked by `ingest`. state:read, history:read,
metrics:read (text for Prometheus): a viewer; the site is open to all of them unless its settings say otherwise.
"""
SCOPES: tuple[Scope, ...] = get_args(Scope)

View = TypeVar("View", bound=Callable[..., Any])
_SCOPE_OF_VIEW = "cluster_dash_scope"


def needs(scope: Scope) -> Callable[[View], View]:
    """Declare the scope of a view function; one without it is never served (a test walks the routes)."""

    def declare(view: View) -> View:
        setattr(view, _SCOPE_OF_VIEW, scope)
        return view

    return declare


def scope_of(view: Callable[..., Any]) -> Scope | None:
    """Return the scope a view function declares, None where it declares none."""
    scope: Scope | None = getattr(view, _SCOPE_OF_VIEW, None)
    return scope
