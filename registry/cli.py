"""The command line of `dagi-registry`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from registry import allow_cli, audit_cli, ca_cli, federation_cli, keys_cli, logs
from registry.redis_url import redacted
from registry.settings import ConfigurationError, load, misspelled

# Without rich: its boxes cut off long options' names on a terminal of 80 columns.
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """The federated node registry."""


def _flag(text: str) -> Any:
    return typer.Option(help=text, show_default=False)


@app.command("serve")
def serve_command(  # every flag of the contract is a parameter: that is what typer reads
    region: Annotated[str | None, _flag("This registry's region (local).")] = None,
    registry_id: Annotated[str | None, _flag("Its id; the region's name by default.")] = None,
    host: Annotated[str | None, _flag("Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, _flag("Port to listen on (9205).")] = None,
    data_dir: Annotated[Path | None, _flag("Embedded store and secrets (~/.dagi/registry/<id>).")] = None,
    redis_url: Annotated[str | None, _flag("Redis or Valkey instead of the embedded one.")] = None,
    auth: Annotated[str | None, _flag("key or open (key).")] = None,
    allow_open_registration: Annotated[bool | None, _flag("Let anyone who reaches us register.")] = None,
    workers: Annotated[int | None, _flag("Processes that share the port (1).")] = None,
    peer: Annotated[list[str] | None, _flag("Another region's registry; may be repeated.")] = None,
    advertise_url: Annotated[str | None, _flag("What agents and peers are told to dial.")] = None,
    heartbeat_interval_s: Annotated[float | None, _flag("How often nodes should report (30).")] = None,
    degraded_after_s: Annotated[float | None, _flag("Silence until degraded (90).")] = None,
    offline_after_s: Annotated[float | None, _flag("Silence until offline (300).")] = None,
    allowed_nodes: Annotated[str | None, _flag("Node ids, addresses, networks, cert: names that may register.")] = None,
    tls_cert: Annotated[Path | None, _flag("Certificate chain (PEM).")] = None,
    tls_key: Annotated[Path | None, _flag("Its private key (PEM).")] = None,
    tls_ca: Annotated[Path | None, _flag("CA of clients: mutual TLS.")] = None,
    key_rate: Annotated[float | None, _flag("Requests a second with one key; 0: any (2000).")] = None,
    address_rate: Annotated[float | None, _flag("Without a key, from one address; 0: any (500).")] = None,
    trusted_proxies: Annotated[str | None, _flag("Networks whose X-Forwarded-For counts.")] = None,
    cors_origins: Annotated[str | None, _flag("Origins of pages that may call.")] = None,
    log_format: Annotated[str | None, _flag("text or json (text).")] = None,
    log_level: Annotated[str | None, _flag("debug, info, warning or error (warning).")] = None,
    regions_file: Annotated[Path | None, _flag("Region aliases (TOML).")] = None,
    audit_keep_mb: Annotated[int | None, _flag("Audit log on disk, at most (1024).")] = None,
    audit_sign_every_s: Annotated[float | None, _flag("How often it is signed for the peers (300).")] = None,
    env_file: Annotated[Path | None, _flag("File of REGISTRY_... settings (.env).")] = None,
) -> None:
    """Run a registry. Every flag is also REGISTRY_<FLAG> in the environment or the env file. Secrets stand only there:
    REGISTRY_ADMIN_KEY (what operators show) and REGISTRY_FEDERATION_SECRET (the same at every registry)."""
    flags = {name: value for name, value in locals().items() if name != "env_file"}
    try:
        settings = load(flags, env_file)
    except ConfigurationError as error:
        typer.echo(f"dagi-registry: {error}", err=True)
        raise typer.Exit(2) from None
    logs.configure(settings.log_format, settings.log_level)
    logs.conceal(*settings.secrets)
    if redis_url and redacted(redis_url) != redis_url:
        logs.event(
            "secret_in_process_list",
            30,
            hint="--redis-url shows its password to all users of this machine; set REGISTRY_REDIS_URL instead",
        )
    for warning in misspelled(os.environ):
        logs.event("unknown_setting", 30, hint=warning)
    for warning in settings.allowlist_warnings():
        logs.event("allowlist", 30, hint=warning)
    from registry.supervisor import serve  # the settings come first: a wrong one should fail fast

    raise typer.Exit(serve(settings))


app.command("members")(federation_cli.members)
app.command("status")(federation_cli.status)
app.add_typer(ca_cli.app, name="ca")
app.add_typer(allow_cli.allow, name="allow")
app.add_typer(keys_cli.keys, name="keys")
app.add_typer(keys_cli.join_token, name="join-token")
app.add_typer(audit_cli.app, name="audit")
