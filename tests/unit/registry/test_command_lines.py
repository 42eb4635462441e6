"""What the commands print fits a terminal of 80 columns, and loses nothing there that has to be typed again."""

import re

import pytest
import typer
from typer.testing import CliRunner

from agent.cli import app as agent
from registry.allow_cli import _show_who  # the command asks a running registry
from registry.cli import app as registry
from registry.settings import Settings


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_help_of_serve_names_every_setting() -> None:
    shown = CliRunner().invoke(registry, ["serve", "--help"]).output
    flags = set(re.findall(r"--[a-z-]+", shown))
    secret = {"admin_key", "federation_secret"}
    named = {f"--{name.replace('_', '-')}" for name in Settings.model_fields if name not in (*secret, "nats_url")}
    assert named <= flags
    assert all(f"REGISTRY_{name.upper()}" in shown for name in secret)
    assert "\u2026" not in shown


@pytest.mark.parametrize("app", [agent, registry])
def test_a_mistyped_option_is_told_in_plain_lines(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["--versoin"])
    assert result.exit_code == 2
    assert "Error: No such option" in result.output


def test_a_node_that_waits_is_shown_with_an_id_that_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "node_id": "node-a-rather-long-hostname-85458610", "code": "M7JE-G67V-UPSB", "state": "waiting",
        "observed_ip": "2001:db8:7:8:9:a:b:c", "hostname": "a-rather-long-hostname.example.org", "node_name": "",
        "through": "us", "asked_at": "2026-01-31T12:00:00.000Z",
    }  # fmt: skip
    _show_who([row])
    words = capsys.readouterr().out.split()
    assert row["node_id"] in words
    assert row["code"] in words
