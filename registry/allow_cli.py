"""`dagi-registry allow ...`: the allowlist of a running registry, and with it of its federation.

Exit status: 0 done, 1 refused (the reason is on standard error), 2 the registry could not be asked.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from registry.federation_cli import AsJson, EnvFile, TlsCa, Url, asking, complain, flag, print_tables, table

if TYPE_CHECKING:  # `serve` imports this module too, and does not need it
    from registry.admin_client import AdminClient, Answer

ALLOWLIST, NODES = "/api/v1/allowlist", "/api/v1/nodes"
PAGE = 10_000
HEADINGS = ("ENTRY", "KIND", "SOURCE", "ADDED", "NOTE")
WHO_HEADINGS = ("NODE", "CODE", "STATE", "SINCE")
WHENCE_HEADINGS = ("NODE", "FROM", "HOST", "AT")

allow = typer.Typer(no_args_is_help=True, help="Who may join: look, list, remove, approve. Needs REGISTRY_ADMIN_KEY.")

Entries = Annotated[
    list[str], typer.Argument(help="Node ids, addresses, networks, cert:<identity>.", metavar="ENTRY...")
]
Node = Annotated[str, typer.Argument(help="The node's id.", metavar="NODE_ID")]
Code = Annotated[str | None, flag("The code that the node itself shows.", "--code")]


@allow.command("list")
def list_(
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
    unlisted: Annotated[bool, flag("Also the registered nodes that no entry covers.", "--unlisted")] = False,
) -> None:
    """Show the list, and whether it is on."""
    asking(url, env_file, tls_ca, lambda ask: _list(ask, as_json, unlisted))


@allow.command("add")
def add(
    entries: Entries,
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
    note: Annotated[str | None, flag("Why, for whoever looks at the list.")] = None,
) -> None:
    """List entries, at every registry of the federation."""
    body = {"note": note} if note else {}
    asking(
        url,
        env_file,
        tls_ca,
        lambda ask: _each(entries, as_json, lambda e: ask.send("POST", ALLOWLIST, {"entry": e, **body})),
    )


@allow.command("remove")
def remove(
    entries: Entries, url: Url = None, env_file: EnvFile = None, tls_ca: TlsCa = None, as_json: AsJson = False
) -> None:
    """Take entries off; nodes that no other entry covers are refused from now on."""
    asking(
        url,
        env_file,
        tls_ca,
        lambda ask: _each(entries, as_json, lambda e: ask.delete(f"{ALLOWLIST}/{quote(e, safe='')}")),
    )


@allow.command("on")
def on(
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
    approvals: Annotated[
        bool | None, flag("Whether nodes that are not listed may ask for approval.", "--approvals/--no-approvals")
    ] = None,
) -> None:
    """Only listed nodes may register and stay, at every registry. Look at `allow list --unlisted` first."""
    change = {"enforced": True} | ({} if approvals is None else {"approvals": approvals})
    asking(url, env_file, tls_ca, lambda ask: _turn(ask, as_json, change))


@allow.command("off")
def off(url: Url = None, env_file: EnvFile = None, tls_ca: TlsCa = None, as_json: AsJson = False) -> None:
    """Nobody is refused; the entries stay."""
    asking(url, env_file, tls_ca, lambda ask: _turn(ask, as_json, {"enforced": False}))


@allow.command("pending")
def pending(url: Url = None, env_file: EnvFile = None, tls_ca: TlsCa = None, as_json: AsJson = False) -> None:
    """Show who waits for approval."""
    asking(url, env_file, tls_ca, lambda ask: _pending(ask, as_json))


@allow.command("approve")
def approve(
    node_id: Node,
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
    code: Code = None,
    yes: Annotated[bool, flag("Approve the only one who asks, whoever it is.", "--yes")] = False,
) -> None:
    """List a node for who asked under its id. Compare the code first: anybody can ask under any id."""
    asking(url, env_file, tls_ca, lambda ask: _approve(ask, node_id, code, yes, as_json))


@allow.command("deny")
def deny(
    node_id: Node,
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
    code: Code = None,
) -> None:
    """Refuse who asked, for a day."""
    asking(url, env_file, tls_ca, lambda ask: _decide(ask, "deny", node_id, code, as_json))


def _list(ask: "AdminClient", as_json: bool, unlisted: bool) -> int:
    from registry import federation_text as text

    more = "&unlisted=1" if unlisted else ""
    answer = ask.get(f"{ALLOWLIST}?limit={PAGE}{more}")
    if answer.status != 200:
        return complain([answer.detail])
    whole = answer.body
    while whole["next_cursor"] is not None:
        page = ask.get(f"{ALLOWLIST}?limit={PAGE}&cursor={quote(whole['next_cursor'], safe='')}")
        if page.status != 200:
            return complain([page.detail])
        whole["entries"] += page.body["entries"]
        whole["next_cursor"] = page.body["next_cursor"]
    if as_json:
        return _json(whole)
    state = f"on (by {' and '.join(whole['enforced_by'])})" if whole["enforced"] else "off: nobody is refused"
    state += "; who is not listed may ask for approval" if whole["approvals"] else ""
    typer.echo(f"The list is {state}.")
    if whole["entries"]:
        rows = [[text.plain(cell or text.NOTHING) for cell in _cells(row)] for row in whole["entries"]]
        print_tables(table(HEADINGS, rows))
    if unlisted:
        found = whole["unlisted"]
        shown = ", ".join(map(text.plain, found["node_ids"])) + (
            ", ..." if found["total"] > len(found["node_ids"]) else ""
        )
        typer.echo(f"Registered and not covered: {found['total']}{f' ({shown})' if shown else ''}.")
    return 0


def _cells(row: Mapping[str, Any]) -> Sequence[str | None]:
    return row["entry"], row["kind"], row["source"], _minute(row["added_at"]), row["note"]


def _minute(at: str | None) -> str | None:
    """A time of the registry's, to the minute: UTC."""
    return f"{at[:10]} {at[11:16]}Z" if at else None


def _pending(ask: "AdminClient", as_json: bool) -> int:
    answer = ask.get(f"{ALLOWLIST}/pending")
    if answer.status != 200:
        return complain([answer.detail])
    if as_json:
        return _json(answer.body)
    if not answer.body["approvals"]:
        typer.echo("Approvals are off: who is not listed is refused. `allow on --approvals` lets nodes ask.")
    if answer.body["pending"]:
        _show_who(answer.body["pending"])
    elif answer.body["approvals"]:
        typer.echo("Nobody waits.")
    return 0


def _show_who(rows: Sequence[Mapping[str, Any]]) -> None:
    """Two narrow tables: an id that is folded cannot be copied into `allow approve`."""
    print_tables(table(WHO_HEADINGS, map(_who, rows)), table(WHENCE_HEADINGS, map(_whence, rows)))


def _who(row: Mapping[str, Any]) -> Sequence[str]:
    return _plain(row["node_id"], row["code"], row["state"], _minute(row.get("asked_at") or row.get("denied_at")))


def _whence(row: Mapping[str, Any]) -> Sequence[str]:
    return _plain(row["node_id"], row["observed_ip"], row["hostname"] or row["node_name"], row["through"])


def _plain(*cells: str | None) -> Sequence[str]:
    from registry import federation_text as text

    return [text.plain(cell or text.NOTHING) for cell in cells]


def _approve(ask: "AdminClient", node_id: str, code: str | None, yes: bool, as_json: bool) -> int:
    """Without its code, ask whether the one that waits is the right one."""
    if code is None and not yes:
        answer = ask.get(f"{ALLOWLIST}/pending")
        if answer.status != 200:
            return complain([answer.detail])
        found = [row for row in answer.body["pending"] if row["node_id"] == node_id and row["state"] == "waiting"]
        if len(found) == 1:
            _show_who(found)
            if not sys.stdin.isatty():
                return complain(
                    ["nobody was approved: compare the code with what the node shows, and give it as --code"]
                )
            if not typer.confirm("Does the node show this code?"):
                return complain(["nobody was approved"])
            code = found[0]["code"]
    return _decide(ask, "approve", node_id, code, as_json)


def _decide(ask: "AdminClient", what: str, node_id: str, code: str | None, as_json: bool) -> int:
    path = f"{NODES}/{quote(node_id, safe='')}/{what}"
    answer = ask.send("POST", path, {"code": code} if code else {})
    if answer.status != 200:
        return complain([answer.detail])
    if as_json:
        return _json(answer.body)
    done = "may register: its next try succeeds, at every registry" if what == "approve" else "is refused for a day"
    typer.echo(f"{node_id} (code {answer.body['code']}) {done}.")
    return _warn(answer)


def _turn(ask: "AdminClient", as_json: bool, change: Mapping[str, bool]) -> int:
    answer = ask.send("PATCH", ALLOWLIST, change)
    if answer.status != 200:
        return complain([answer.detail])
    if as_json:
        return _json(answer.body)
    asking_too = ", and nodes may ask for approval" if answer.body["approvals"] else ""
    typer.echo(f"The list is {'on' + asking_too if answer.body['enforced'] else 'off'}.")
    return _warn(answer)


def _each(entries: Sequence[str], as_json: bool, change: "Callable[[str], Answer]") -> int:
    """One change an entry; the others are made where one is refused."""
    answers = [(entry, change(entry)) for entry in entries]
    made = [answer.body for _, answer in answers if answer.status == 200]
    if as_json:
        _json(made)
    else:
        for body in made:
            typer.echo(f"{body['entry']} is {'off the list' if 'message' in body else 'on the list'}.")
        for warning in dict.fromkeys(warning for body in made for warning in body["warnings"]):
            typer.echo(f"note: {warning}", err=True)
    return complain([f"{entry}: {answer.detail}" for entry, answer in answers if answer.status != 200])


def _json(value: Any) -> int:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    return 0


def _warn(answer: "Answer") -> int:
    for warning in answer.body.get("warnings", ()):
        typer.echo(f"note: {warning}", err=True)
    return 0
