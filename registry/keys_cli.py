"""`dagi-registry keys ...` and `dagi-registry join-token create`: keys of a registry, and so of its federation.

A key that was made is the only thing on standard output, so that it can be piped to where it belongs; what there is to
say of it is on standard error. Exit status: 0 done, 1 refused, 2 the registry could not be asked.
"""

import json
import shutil
import textwrap
import time
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote, urlencode

import typer

from registry.federation_cli import (
    FEDERATION,
    NOT_ASKED,
    AsJson,
    EnvFile,
    TlsCa,
    Url,
    asking,
    complain,
    flag,
    print_tables,
    table,
)

if TYPE_CHECKING:  # `serve` imports this module too, and needs none of these
    from registry.admin_client import AdminClient, Answer

KEYS, NODES = "/api/v1/keys", "/api/v1/nodes"
Json = Any

keys = typer.Typer(no_args_is_help=True, help="API keys: make, list, revoke, replace. Needs REGISTRY_ADMIN_KEY.")
join_token = typer.Typer(no_args_is_help=True, help="Let new nodes in. Needs REGISTRY_ADMIN_KEY.")

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it; never the key itself.")]
OptionalId = Annotated[str | None, typer.Argument(metavar="[KEY_ID]", help="As `keys list` shows it.")]
Node = Annotated[str | None, flag("Instead of KEY_ID: this node's key.", "--node")]
Name = Annotated[str, flag("What it is for: shown in lists.")]
Expires = Annotated[str | None, flag("How long it is good: 15m, 24h, 30d.")]
MaxUses = Annotated[int | None, flag("How many nodes it lets in.")]


@keys.command("create")
def create(
    kind: Annotated[str, typer.Argument(metavar="read|join|admin", help="What it is good for.")],
    name: Name = "",
    scope: Annotated[list[str] | None, flag("Read keys: nodes, region:NAME, role:NAME; repeat.")] = None,
    expires_in: Expires = None,
    max_uses: MaxUses = None,
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, good at every registry at once. It is shown only now. Without --expires-in a join key lasts a day,
    others last until they are revoked."""
    asked = _asked(kind, name, scope, expires_in, max_uses)
    asking(url, env_file, tls_ca, lambda ask: _told_key(ask.send("POST", KEYS, asked), as_json))


@keys.command("list")
def list_(
    status: Annotated[str, flag("active, expired, used_up, revoked, or any (active).")] = "active",
    kind: Annotated[str, flag("read, join, admin or node (all).")] = "",
    node: Annotated[str | None, flag("The keys of this node.", "--node")] = None,
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Show keys, the newest first: never the keys themselves. Nodes' keys are shown when they were replaced or
    revoked, and with --node."""
    query = {"status": status, "kind": kind, "limit": "1000", **({"node_id": node} if node else {})}
    asking(url, env_file, tls_ca, lambda ask: _list(ask, {k: v for k, v in query.items() if v}, as_json))


@keys.command("show")
def show(
    key_id: KeyId, url: Url = None, env_file: EnvFile = None, tls_ca: TlsCa = None, as_json: AsJson = False
) -> None:
    """Show one key: its rights, who made it, when it was used."""
    asking(url, env_file, tls_ca, lambda ask: _show(ask, key_id, as_json))


@keys.command("revoke")
def revoke(
    key_id: OptionalId = None,
    node: Node = None,
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """End a key for good, at every registry, also one that only others know. There is no way back."""
    _one_of(key_id, node)
    asking(url, env_file, tls_ca, lambda ask: _revoke(ask, key_id, node, as_json))


@keys.command("rotate")
def rotate(
    key_id: OptionalId = None,
    node: Node = None,
    overlap: Annotated[str, flag("How long the old key stays good beside the new one (1h).")] = "1h",
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Replace a key by a new one with the same rights, or give a node a new key. The old one ends after the overlap;
    --overlap 0 ends it at once."""
    _one_of(key_id, node)
    body = {"overlap_s": _seconds(overlap, "--overlap")}
    path = f"{NODES}/{quote(node, safe='')}/key" if node else f"{KEYS}/{quote(key_id or '', safe='')}/rotate"
    asking(url, env_file, tls_ca, lambda ask: _told_key(ask.send("POST", path, body), as_json))


@join_token.command("create")
def create_join_token(
    name: Name = "",
    expires_in: Expires = None,
    max_uses: MaxUses = None,
    curl: Annotated[bool, flag("A command for a machine without this project.", "--curl")] = False,
    node_url: Annotated[list[str] | None, flag("What it should dial; what registries advertise.")] = None,
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Make a join token, good for a day, and print the one command to paste on a new machine."""
    asked = _asked("join", name, None, expires_in, max_uses)
    asking(url, env_file, tls_ca, lambda ask: _join(ask, asked, node_url or [], curl, as_json))


# parts


def _asked(
    kind: str, name: str, scopes: list[str] | None, expires_in: str | None, max_uses: int | None
) -> dict[str, Json]:
    expires_in_s = _seconds(expires_in, "--expires-in") if expires_in is not None else None
    asked = {"kind": kind, "name": name, "scopes": scopes, "expires_in_s": expires_in_s, "max_uses": max_uses}
    return {field: value for field, value in asked.items() if value not in (None, "")}


def _seconds(text: str, which: str) -> int:
    from registry.keys_text import duration_s

    try:
        return duration_s(text)
    except ValueError as error:
        _wrong(f"{which}: {error}")


def _one_of(key_id: str | None, node: str | None) -> None:
    if (key_id is None) == (node is None):
        _wrong("give a KEY_ID, or --node with a node's id")
    if key_id is not None and key_id.startswith("sk-"):
        _wrong("that is a key, not its id: `keys list` shows ids. Whoever can read your shell's history has it now")


def _wrong(sentence: str) -> NoReturn:
    complain([sentence])
    raise typer.Exit(NOT_ASKED)


def _told_key(answer: "Answer", as_json: bool) -> int:
    """Say what was made: the key alone on standard output."""
    from registry import keys_text as text

    if answer.status != 200:
        return complain([answer.detail])
    if as_json:
        return _json(answer.body)
    typer.echo(answer.body.get("key") or answer.body["api_key"])
    if "api_key" in answer.body:
        until = answer.body["replaced_until"]
        _note(f"The new key of {answer.body['node_id']}, shown only now; the old one is good until {until}. Set it as "
              "NODE_API_KEY where that node's agent runs.")  # fmt: skip
    else:
        _note(text.made(answer.body))
    return 0


def _list(ask: "AdminClient", query: dict[str, str], as_json: bool) -> int:
    from registry import keys_text as text

    answer = ask.get(f"{KEYS}?{urlencode(query)}")
    if answer.status != 200:
        return complain([answer.detail])
    if as_json:
        return _json(answer.body)
    print_tables(table(text.HEADINGS, [text.cells(key, time.time()) for key in answer.body["keys"]], right=("USES",)))
    more = answer.body["total"] - len(answer.body["keys"])
    if more > 0:
        _note(f"and {more} older ones; --json with {KEYS}?offset=... shows all.")
    return 0


def _show(ask: "AdminClient", key_id: str, as_json: bool) -> int:
    from registry import keys_text as text

    answer = ask.get(f"{KEYS}/{quote(key_id, safe='')}")
    if answer.status != 200:
        return complain([answer.detail])
    if as_json:
        return _json(answer.body)
    print_tables(table((), text.lines(answer.body)))
    return 0


def _revoke(ask: "AdminClient", key_id: str | None, node: str | None, as_json: bool) -> int:
    ids, done = [key_id] if key_id is not None else [], list[str]()
    if node is not None:
        # Another key, which nobody is told, takes the place of the present one; what is left are keys in their overlap.
        answer = ask.send("POST", f"{NODES}/{quote(node, safe='')}/key", {"overlap_s": 0})
        listed = ask.get(f"{KEYS}?{urlencode({'node_id': node})}") if answer.status == 200 else answer
        if listed.status != 200:
            return complain([f"nothing was revoked: {listed.detail}"])
        done += answer.body["replaces"]
        ids = [key["key_id"] for key in listed.body["keys"] if key["key_id"] != answer.body["key_id"]]
    for each in ids:
        answer = ask.delete(f"{KEYS}/{quote(each, safe='')}")
        if answer.status != 200:
            return complain([f"{each} was not revoked: {answer.detail}"])
        done.append(each)
    if as_json:
        return _json({"revoked": done})
    typer.echo(f"{', '.join(done)} revoked, here and soon at every registry that can be reached")
    return 0


def _join(ask: "AdminClient", asked: dict[str, Json], urls: list[str], curl: bool, as_json: bool) -> int:
    from registry import keys_text as text

    if not urls:
        federation = ask.get(FEDERATION)
        if federation.status != 200:
            return complain([federation.detail])
        urls = text.urls_of(federation.body)
    answer = ask.send("POST", KEYS, asked)
    if answer.status != 200:
        return complain([answer.detail])
    command = text.join_command(urls, answer.body["key"], curl=curl)
    if as_json:
        return _json({**answer.body, "command": command})
    typer.echo(command)
    _note(" ".join([text.made(answer.body), *text.join_notes(urls, curl=curl)]))
    return 0


def _json(body: Json) -> int:
    typer.echo(json.dumps(body, indent=2, ensure_ascii=False))
    return 0


def _note(sentences: str) -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    typer.echo(textwrap.fill(sentences, width, break_long_words=False, break_on_hyphens=False), err=True)
