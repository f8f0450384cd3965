"""Routes whose addresses are compiled when they are first asked for, so that a server starts sooner.

For each route Werkzeug compiles two functions that make its address of values: half of the time in which the
application is built. Most are never called, so they are compiled when they are.
"""

from collections.abc import Callable
from typing import Any

from werkzeug.routing import Rule

_Builder = Callable[..., tuple[str, str]]


class LazyRule(Rule):
    """A route whose address can be made of values a little later."""

    def _compile_builder(self, append_unknown: bool = True) -> _Builder:
        # Werkzeug's own, not promised to anybody: where it goes by another name, routes are compiled at once again
        compile_now, compiled = super()._compile_builder, list[_Builder]()

        def build(rule: Rule, **values: Any) -> tuple[str, str]:
            if not compiled:
                compiled.append(compile_now(append_unknown))
            return compiled[0](rule, **values)

        return build
