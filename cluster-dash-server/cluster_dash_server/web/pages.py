"""The pages of the live view: each is whole as HTML, scripts then keep it fresh."""

from collections import Counter
from collections.abc import Callable

from flask import Blueprint, Response, request

from cluster_dash_server import facets, free
from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.events import EventLog, silences
from cluster_dash_server.filters import Filter
from cluster_dash_server.web import (
    charts,
    export,
    fleet,
    host_page,
    overview_page,
    rows,
    user_page,
    views,
    words,
    xids,
)
from cluster_dash_server.web.answers import html
from cluster_dash_server.web.parameters import choice
from cluster_dash_server.web.views import View

GPU_METRICS = (
    ("gpu_util", "GPU busy, %"),
    ("used_mem", "GPU memory in use, GiB"),
    ("temperature_c", "Temperature, °C"),
    ("power_w", "Power, W"),
)
MOST_ROWS = 199
"""Rows of one table: with its head, what a browser patches in a tick without being felt."""
MOST_CARDS = 8
"""Models of which the overview says where they are free."""
GPU_PLOT_PX = 220
MOST_PANELS, PANEL_PX = 8, 180
"""As `static/js/gpu-data.js` has them."""


def blueprint(
    cluster: Cluster, log: EventLog, clock: Callable[[], float], site: str, bygone: Callable[[str], View]
) -> Blueprint:
    """Build the pages.

    Args:
        cluster: the live view.
        log: what happened.
        clock: Unix s.
        site: the name of this site.
        bygone: the cluster as it stood at a moment, in a text that the request gave.
    """
    pages = Blueprint("pages", __name__, template_folder="../templates")
    pages.add_app_template_filter(line)

    @pages.get("/")
    @needs("state:read")
    def overview() -> Response:
        at = request.args.get("at")
        view, form = asked() if not at else (bygone(at), choice("format", export.FORMS))
        if form != "html":
            return export.answer(form, export.hosts(view), view, site)
        sort = choice("sort", fleet.ORDERS.choices())
        part = fleet.page(len(view.hosts), request.args.get("page", ""))
        shown = part.of(fleet.order(view.hosts, sort))
        grouped_by = fleet.grouping(request.args.get("group"), len(view.every), view.wish)
        return html(
            "overview.html",
            page="overview",
            now=view.now,
            at=at,
            json_path=None if at else "api/v1/cluster",
            view=view,
            part=part,
            sort=sort,
            orders=fleet.ORDERS,
            grouped_by=grouped_by,
            groups=[] if grouped_by is None else fleet.groups(view.narrowed, grouped_by, view.wish),
            title=rows.title(view.narrowed, site),
            icon=rows.icon(view.narrowed),
            sentence=view.sentence,
            notes=rows.attention(view.narrowed, view.now),
            xids=xids.lines(
                [event for event in log.newest(begin=view.now - xids.DAY_SECONDS) if event.at <= view.now],
                (host.host for host in view.hosts),
                view.now,
            ),
            cards=[] if at else free.cards(view.narrowed)[:MOST_CARDS],
            counts=counts(view),
            meanings=list(rows.meanings(cluster.thresholds).items()),
            rows=rows.rows(shown, view.now, view.marks_of),
            wide=rows.wide(shown),
            **overview_page.words_of(view, part, sort),
        )

    @pages.get("/gpu-data")
    @needs("state:read")
    def gpu_data() -> Response:
        view, form = asked()
        if form != "html":
            return export.answer(form, export.gpus(view), view, site)
        shown = rows.gpu_rows(view.narrowed, MOST_ROWS)
        return html(
            "gpus.html",
            page="gpus",
            now=view.now,
            json_path="data-out/gpu-data-simple",
            view=view,
            icon=rows.icon(view.narrowed),
            sentence=view.sentence,
            hosts=view.every,
            counts=counts(view),
            meanings=list(rows.meanings(cluster.thresholds).items()),
            links=overview_page.legend_links(view),
            gpu_count=view.matching.gpus,
            shown=shown,
            most=MOST_ROWS,
            metrics=GPU_METRICS,
            plot_height=GPU_PLOT_PX,
            most_panels=MOST_PANELS,
            panel_height=PANEL_PX,
        )

    def asked() -> tuple[View, str]:
        """Return what the request at hand asks to see, and in which form."""
        now = clock()
        return views.asked(cluster.hosts(now), now), choice("format", export.FORMS)

    def chart_page(metric: str, tab: str) -> Response:
        view, form = asked()
        if form != "html":
            return export.answer(form, charts.table(metric, view.hosts), view, site)
        chart = charts.chart(metric, view.hosts)
        return html(
            "chart.html",
            page="chart",
            now=view.now,
            json_path=f"api/v1/figures/{metric}",
            view=view,
            icon=rows.icon(view.hosts),
            chart=chart,
            figure=charts.figure(chart),
            named=charts.NAMED,
            tab=tab,
        )

    @pages.get("/cpu-data")
    @needs("state:read")
    def cpu_data() -> Response:
        return chart_page("cpu", "cpu-data")

    @pages.get("/memory")
    @needs("state:read")
    def memory() -> Response:
        return chart_page("memory", "memory")

    @pages.get("/root_drive")
    @needs("state:read")
    def root_drive() -> Response:
        return chart_page("disk", "root_drive")

    @pages.get("/load-data-1")
    @needs("state:read")
    def load_data() -> Response:
        return chart_page("load", "load-data-1")

    @pages.get("/host/<host>")
    @needs("state:read")
    def one_host(host: str) -> Response:
        now = clock()
        view = cluster.host(host, now)
        if view is None:
            names = sorted(cluster.names())
            nearest = host_page.nearest(host, names)
            return html("unknown_host.html", 404, page="host", name=host, nearest=nearest, count=len(names))
        form = choice("format", export.FORMS)
        if form != "html":
            alone = views.look([view], "", now)
            return export.answer(form, export.gpus(alone), alone, f"{site}, {host}")
        before, after = host_page.neighbours(host, cluster.names())
        told = sorted(log.newest([host]) + silences([view], cluster.thresholds), key=lambda event: -event.at)
        return html(
            "host.html",
            before=before,
            after=after,
            page="host",
            now=now,
            json_path=f"api/v1/hosts/{words.segment(host)}",
            **host_page.words_of(view, told, cluster.thresholds, now),
        )

    @pages.get("/user/<path:user>")  # a name may hold a slash
    @needs("state:read")
    def one_user(user: str) -> Response:
        now = clock()
        form = choice("format", export.FORMS)
        of_user = str(Filter(terms=(facets.exactly("user", user),)))
        view = views.look(cluster.hosts(now), of_user, now)
        if form != "html":
            return export.answer(form, export.gpus(view), view, site)
        return html("user.html", page="user", **user_page.words_of(user, view, cluster.thresholds))

    return pages


def counts(view: View) -> Counter[str]:
    """Count GPUs by state; under a filter those that the rest of it means: the legend says what a click gives."""
    if not view.wish.terms:
        return Counter[str](rows.state_counts(view.hosts))
    return Counter({each.value: each.count for each in view.facets.choices["state"]})


def line(card: free.Card, root: str) -> str:
    """Return the line of a card for a terminal: it takes a GPU where Slurm gives them, else says which are free.

    Names in it are a mole's: none ends it.
    """
    if card.asks is not None:
        return f"srun {card.asks} --pty bash"
    wanted = words.segment(card.model).replace("'", "%27")
    return f"curl -s '{root}api/v1/free?model={wanted}&format=text'"
