"""`dagi-registry members` and `dagi-registry status`: ask a running registry, and show how it and its peers fare.

Exit status: 0 all is well, 1 the registry is not ready or a peer is down (or nothing was there to forget), 2 it
could not be asked. What is wrong also goes to standard error, so that a timer's mail holds just that.
"""

import json
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote

import typer

if TYPE_CHECKING:  # `serve` imports this module too, and needs none of these
    from rich.table import Table

    from registry.admin_client import AdminClient

UNWELL, NOT_ASKED = 1, 2
FEDERATION = "/api/v1/federation"
FORGET_WITHIN_S = 60.0  # what the forgotten one had signed is signed anew: 100,000 writes take ten seconds


def flag(text: str, *names: str) -> Any:
    """An option that shows no default: what holds without it stands in its text."""
    return typer.Option(*names, help=text, show_default=False)


Url = Annotated[
    str | None, flag("Registry to ask; also REGISTRY_URL (as REGISTRY_HOST and _PORT say: http://127.0.0.1:9205).")
]
EnvFile = Annotated[Path | None, flag("File of REGISTRY_... settings, keys among them (.env).")]
TlsCa = Annotated[Path | None, flag("Authority of the registry's certificate (PEM).")]
AsJson = Annotated[bool, flag("For programs.", "--json")]


def members(
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
    forget: Annotated[str | None, flag("Take the registry of this id out of the roster.")] = None,
) -> None:
    """Show all registries of the federation as one of them sees them. The key comes from REGISTRY_ADMIN_KEY or
    REGISTRY_READ_KEY. Ends with 1 when one of them is down."""
    asking(url, env_file, tls_ca, lambda ask: _forget(ask, forget) if forget else _members(ask, as_json))


def status(url: Url = None, env_file: EnvFile = None, tls_ca: TlsCa = None, as_json: AsJson = False) -> None:
    """Show how one registry fares. The key comes from REGISTRY_ADMIN_KEY or REGISTRY_READ_KEY. Ends with 1 when
    it is not ready or a peer of it is down."""
    asking(url, env_file, tls_ca, lambda ask: _status(ask, as_json))


def asking(
    url: str | None, env_file: Path | None, tls_ca: Path | None, command: "Callable[[AdminClient], int]"
) -> NoReturn:
    """Ask a registry, and end with what `command` gives; with 2 where it cannot be asked, and say why."""
    from registry.admin_client import AdminClient, CannotAsk, target

    try:
        result = command(AdminClient(target(url, env_file, tls_ca, os.environ)))
    except CannotAsk as error:
        complain([str(error)])
        result = NOT_ASKED
    raise typer.Exit(result)


def _members(ask: "AdminClient", as_json: bool) -> int:
    from registry import federation_text as text

    reasons = ask.readiness()
    answer = ask.get(FEDERATION)
    if answer.status != 200:
        return complain([f"{ask.url} is not ready: {text.plain('; '.join(reasons) or answer.detail)}"])
    rows = text.member_rows(answer.body, reasons)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print_tables(
            table(text.MEMBER_HEADINGS, map(text.member_cells, rows), right=("LAG", "RTT", "NODES")),
            table(text.ADDRESS_HEADINGS, map(text.address_cells, rows)),
            *[table((), [("Note", note)]) for note in text.notes(answer.body)],
        )
    return complain(text.problems(rows))


def _forget(ask: "AdminClient", registry_id: str) -> int:
    answer = ask.delete(f"{FEDERATION}/members/{quote(registry_id, safe='')}", FORGET_WITHIN_S)
    if answer.status == 404:
        return complain([f"nothing was forgotten: {registry_id} is not in the roster; `members` shows who is"])
    if answer.status == 503:
        return complain([f"whether it was forgotten is not known; `members` shows who is left: {answer.detail}"])
    if answer.status != 200:
        return complain([f"nothing was forgotten: {answer.detail}"])
    told = (
        f"{registry_id} is out of the roster, here and soon at all registries that can be reached, and no identity is "
        "pinned to its name any more: whichever registry of that name links next, and knows the federation's secret, "
        "is taken for it. One that is running comes back by itself within a minute. Its nodes and keys stay."
    )
    typer.echo(textwrap.fill(told, 80))
    return 0


def _status(ask: "AdminClient", as_json: bool) -> int:
    from registry import federation_text as text

    reasons = ask.readiness()
    about = {**(ask.get("/health").body or {}), **(ask.get("/").body or {})}
    federation, metrics = ask.get(FEDERATION), ask.get("/metrics", accept="text/plain")
    view = federation.body if federation.status == 200 else None
    if view is None and not reasons:
        reasons = [federation.detail or "it does not tell about its federation"]
    nodes = text.nodes_by_status(metrics.text) if metrics.status == 200 else {}
    certificates = text.certificates_by_file(metrics.text) if metrics.status == 200 else {}
    report = text.status_report(ask.url, about, reasons, nodes, view, certificates)
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        alerts = text.alert_cells(report)
        tables = [table(text.ALERT_HEADINGS, alerts, right=("COUNT",))] if alerts else []
        print_tables(table((), text.status_lines(report)), *tables)
    return complain(report["problems"])


def complain(problems: Sequence[str]) -> int:
    """Say each on standard error; the exit status."""
    for problem in problems:
        typer.echo(f"dagi-registry: {problem}", err=True)
    return UNWELL if problems else 0


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> "Table":
    """Columns without lines: easy to read, to select and to cut. Ids and URLs fold where they do not fit."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(headings))
    listed = [list(map(Text, row)) for row in rows]
    for heading in headings:
        fits = heading in right or heading in _WHOLE
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold", no_wrap=fits)
    for row in listed:
        for cell in row:
            cell.stylize(_COLOURS.get(cell.plain, ""))
        table.add_row(*row)
    return table


_WHOLE = frozenset(
    ("STATE", "SINCE", "REACHABLE", "LAST", "ALERT", "KEY ID", "STATUS", "CODE", "SOURCE", "ADDED")
)  # columns that are never folded
_COLOURS = {"up": "green", "suspect": "yellow", "down": "red", "not ready": "red"}


def print_tables(*tables: "Table") -> None:
    """With an empty line between. Colours only on a terminal, unless NO_COLOR is set; 80 columns elsewhere."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for index, table in enumerate(tables):
        if index:
            console.print()
        console.print(table)
