"""What `members` and `status` show, and what they say when they cannot ask."""

import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from registry import federation_text as text
from registry.admin_client import CannotAsk, Target, target
from registry.admin_client import _why as why

NOW = "2026-11-24T12:00:00.000Z"
KEY = "sk-admin-" + "k" * 40


def peer(registry_id: str | None, **different: Any) -> dict[str, Any]:
    """One that fares well."""
    return {
        "registry_id": registry_id, "region": registry_id, "url": f"http://{registry_id}.example.org:9205",
        "identity": "ab" * 32, "state": "up", "link": "dialled", "since": "2026-11-24T11:58:30.000Z", "rtt_ms": 98.4,
        "error": None, "frames_in": 1, "frames_out": 1, "bytes_in": 1, "bytes_out": 1, "reachable": True,
        "lag_s": 0.21, "nodes": 1204, **different,
    }  # fmt: skip


NEVER_REACHED = peer(
    None, url="http://mars.example.org:9205", region=None, identity=None, state="down", since=None, rtt_ms=None,
    error="connection refused", reachable=False, lag_s=None, nodes=0,
)  # fmt: skip


def view(*peers: dict[str, Any], **different: Any) -> dict[str, Any]:
    return {
        "self": {
            "registry_id": "eu", "region": "eu", "url": "http://eu.example.org:9205", "generation": 7,
            "identity": "cd" * 32, "federated": True, "ready": True, "reasons": [], "records": 1300, "nodes": 3,
            "version": "eu:7:1",
        },
        "peers": list(peers), "vector": {}, "conflicts": 2, "expiry_hold_s": None, "alerts": {}, "as_of": NOW,
        **different,
    }  # fmt: skip


def report(seen: dict[str, Any] | None, *reasons: str, certificates: str = "") -> dict[str, Any]:
    about = {"registry_id": "eu", "region": "eu", "version": "0.1.0", "uptime_seconds": 11_520.0}
    nodes = {"online": 1200, "degraded": 0, "offline": 7}
    return text.status_report(
        "http://127.0.0.1:9205", about, reasons, nodes, seen, text.certificates_by_file(certificates)
    )


def test_a_certificate_that_expires_soon_is_a_problem() -> None:
    metric = 'dagi_registry_certificate_expires_in_seconds{file="%s"} %s\n'
    lines = metric % ("ca.crt", "3.15e+08") + metric % ('a "b".crt'.replace('"', '\\"'), "1.2e+06")
    found = report(view(), certificates="# HELP x\n" + lines + metric % ("old.crt", "-5.5"))
    assert [each for each in found["problems"] if "certif" in each or ".crt" in each] == [
        'a \\"b\\".crt expires in 13 days; put a new one in its place, nothing has to be restarted',
        "old.crt has expired, and nobody takes it any more; put a new one in its place",
    ]
    shown = [value for name, value in text.status_lines(found) if name == "Certificate"]
    assert shown[0].startswith("ca.crt, good for 3645 d")
    assert shown[2] == "old.crt, EXPIRED"
    assert [name for name, _ in text.status_lines(report(view()))].count("Certificate") == 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (-1.0, "0.0 s"),
        (0.04, "0.0 s"),
        (0.21, "0.2 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (90, "1 min 30 s"),
        (754, "12 min"),
        (3_600, "1 h"),
        (11_520, "3 h 12 min"),
        (86_400 * 2 + 3_600 * 5, "2 d 5 h"),
        (86_400 * 12.4, "12 d"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.31, "0.3 ms"), (9.96, "10 ms"), (98.4, "98 ms"), (1250.0, "1,250 ms")]
)
def test_round_trips(value: float | None, shown: str) -> None:
    assert text.milliseconds(value) == shown


def test_ages_are_of_the_registrys_own_clock() -> None:
    assert text.age_s("2026-11-24T11:59:18.500Z", NOW) == 41.5
    assert text.age_s("2026-11-24T12:00:01.000Z", NOW) == 0.0
    assert text.age_s(None, NOW) is None


def test_members_are_a_row_each_and_the_one_that_was_asked_comes_first() -> None:
    rows = text.member_rows(view(peer("asia", state="suspect", reachable=False), peer("us", lag_s=None)), [])
    assert [text.member_cells(row) for row in rows] == [
        ("eu (self)", "eu", "up", "-", "-", "-", "-", "3"),
        ("asia", "asia", "suspect", "1 min 30 s", "no", "0.2 s", "98 ms", "1,204"),
        ("us", "us", "up", "1 min 30 s", "yes", "-", "98 ms", "1,204"),
    ]
    assert [text.address_cells(row) for row in rows][1] == ("asia", "http://asia.example.org:9205", "-")
    assert text.problems(rows) == []  # a suspect may only be slow


def test_who_only_dials_out_has_no_url() -> None:
    row = text.member_rows(view(peer("home", url=None)), [])[1]
    assert text.address_cells(row) == ("home", "none: it only dials out", "-")


def test_each_peer_that_is_down_is_a_problem_with_its_reason() -> None:
    down = peer("us", state="down", error="no answer", reachable=False)
    rows = text.member_rows(view(down, peer("asia"), NEVER_REACHED), ["catching up with the federation"])
    assert text.member_cells(rows[0])[2] == "not ready"
    assert text.member_cells(rows[3])[:2] == ("(unknown)", "-")
    assert text.problems(rows) == [
        "eu is not ready: catching up with the federation",
        "us has been down for 1 min 30 s: no answer",
        "no registry was reached at http://mars.example.org:9205: connection refused",
    ]
    assert text.problems(text.member_rows(view(peer("us", state="down", since=None)), [])) == ["us is down"]


def test_one_that_was_forgotten_is_shown_and_no_problem_any_more() -> None:
    gone = peer("us", region=None, url=None, identity=None, state="down", reachable=False, since=None, lag_s=900.0)
    rows = text.member_rows(view(gone), [])
    assert text.address_cells(rows[1]) == ("us", "-", "not in the roster")
    assert text.problems(rows) == []
    told = report(view(gone))
    assert (told["peers"], told["worst_lag_s"]) == ({"up": 0, "total": 0}, None)


def test_one_that_refuses_us_is_no_forgotten_one() -> None:
    refuses = peer("us", region=None, identity=None, state="down", reachable=False, error="it refuses", lag_s=None)
    rows = text.member_rows(view(refuses), [])
    assert text.address_cells(rows[1])[2] == "it refuses"
    assert text.problems(rows) == ["us has been down for 1 min 30 s: it refuses"]


def test_an_error_of_a_link_that_is_up_again_is_none() -> None:
    row = text.member_rows(view(peer("us", error="the connection was lost")), [])[1]
    assert (text.address_cells(row)[2], row["error"]) == ("-", "the connection was lost")


def test_why_links_were_not_made_is_told_for_three_minutes() -> None:
    def alert(last_at: str) -> dict[str, Any]:
        return {"count": 3, "last_at": last_at, "detail": "us shows another identity", "peer": None}

    alerts = {
        "identity_changed": alert("2026-11-24T11:59:10.000Z"),
        "wrong_secret": alert("2026-11-24T11:56:50.000Z"),
        "expiry_held": alert("2026-11-24T11:59:50.000Z"),
    }
    assert text.notes(view(alerts=alerts)) == ["50 s ago: us shows another identity"]
    assert text.notes(view()) == []


def test_words_of_others_command_no_terminal() -> None:
    hostile = peer("us", region="\x1b[2Jus", error="gone\x1b]0;pwned\x07\n", state="down")
    rows = text.member_rows(view(hostile), [])
    shown = [*text.member_cells(rows[1]), *text.address_cells(rows[1]), *text.problems(rows)]
    assert all(cell.isprintable() for cell in shown)


def test_the_status_of_a_registry_that_fares_well() -> None:
    assert text.status_lines(report(view(peer("us"), peer("asia", lag_s=0.9)))) == [
        ("Registry", "eu"),
        ("Ready", "yes"),
        ("Region", "eu"),
        ("URL", "http://eu.example.org:9205"),
        ("Version", "0.1.0, up for 3 h 12 min"),
        ("Nodes", "1,207 in all: 1,200 online, 7 offline"),
        ("Records", "1,300, of deleted nodes and of registries too"),
        ("Peers", "2 of 2 up"),
        ("Lag", "0.9 s behind asia at worst"),
        ("Conflicts", "2"),
        ("Expiry hold", "none"),
        ("Alerts", "none"),
    ]


def test_the_status_of_one_that_does_not() -> None:
    alerts = {
        "expiry_held": {"count": 1, "last_at": "2026-11-24T11:00:00.000Z", "detail": "many fell silent", "peer": None},
        "wrong_secret": {"count": 1040, "last_at": "2026-11-24T11:59:48.000Z", "detail": "no proof", "peer": "us"},
    }
    never = peer("us", state="suspect", lag_s=None)
    told = report(view(never, alerts=alerts, expiry_hold_s=24.6), "the store is away", "catching up")
    lines = dict(text.status_lines(told))
    assert lines["Ready"] == "no: the store is away; catching up"
    assert lines["Lag"] == "unknown: no peer was heard yet"
    assert lines["Expiry hold"] == "no node is called offline for another 25 s"
    assert lines["Alerts"] == "1,041"
    assert text.alert_cells(told) == [
        ("wrong_secret", "1,040", "12 s ago", "us: no proof"),
        ("expiry_held", "1", "1 h ago", "many fell silent"),
    ]
    assert told["problems"] == ["eu is not ready: the store is away; catching up"]


def test_a_registry_that_cannot_tell_of_its_federation_yet_shows_the_rest() -> None:
    told = report(None, "the store is away")
    assert [what for what, _ in text.status_lines(told)] == ["Registry", "Ready", "Region", "URL", "Version", "Nodes"]
    assert text.alert_cells(told) == []
    assert told["problems"] == ["eu is not ready: the store is away"]


def test_one_that_is_alone_is_told_why() -> None:
    alone = view()
    assert dict(text.status_lines(report(alone)))["Peers"] == "none"
    alone["self"]["federated"] = False
    lines = dict(text.status_lines(report(alone)))
    assert (lines["Peers"], lines["Lag"]) == ("none: started without REGISTRY_FEDERATION_SECRET", "-")


def test_nodes_are_counted_from_the_metrics() -> None:
    exposition = '# TYPE dagi_registry_nodes gauge\ndagi_registry_nodes{status="online"} 3.0\n'
    exposition += 'dagi_registry_nodes{status="offline"} 1.2e+06\ndagi_registry_ready 1.0\n'
    assert text.nodes_by_status(exposition) == {"online": 3, "offline": 1_200_000}


# whom to ask


def test_flags_stand_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r.env"
    file.write_text(f"REGISTRY_URL=http://file:1\nREGISTRY_ADMIN_KEY={KEY}\nREGISTRY_TLS_CA=/etc/ca.crt\n")
    assert target(None, file, None, {}) == Target("http://file:1", KEY, "REGISTRY_ADMIN_KEY", Path("/etc/ca.crt"))
    given = target("http://flag:3/", file, Path("own.crt"), {"REGISTRY_URL": "http://env:2", "REGISTRY_ADMIN_KEY": "e"})
    assert (given.url, given.key, given.tls_ca) == ("http://flag:3", "e", Path("own.crt"))
    assert target(None, file, None, {"REGISTRY_URL": "http://env:2"}).url == "http://env:2"
    assert KEY not in repr(given)


def test_without_anything_the_usual_registry_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert target(None, None, None, {}) == Target("http://127.0.0.1:9205")
    (tmp_path / ".env").write_text("REGISTRY_READ_KEY=sk-read-x\n")
    assert target(None, None, None, {}).key_name == "REGISTRY_READ_KEY"


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("", "9206", "http://127.0.0.1:9206"),
        ("0.0.0.0", "9206", "http://127.0.0.1:9206"),
        ("192.0.2.7", "9206", "http://192.0.2.7:9206"),
        ("2001:db8::7", "", "http://[2001:db8::7]:9205"),
    ],
)
def test_with_a_registrys_own_settings_that_registry_is_asked(host: str, port: str, url: str, tmp_path: Path) -> None:
    file = tmp_path / "r.env"
    file.write_text(f"REGISTRY_HOST={host}\nREGISTRY_PORT={port}\n")
    assert target(None, file, None, {}).url == url


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"REGISTRY_PORT": "99999"}, "is not a URL"),
        ({"REGISTRY_URL": "registry.example.org"}, "is not a URL such as http://127.0.0.1:9205"),
        ({"REGISTRY_URL": "http://registry.example.org:99999"}, "is not a URL"),
        ({"REGISTRY_ADMIN_KEY": "sk-admin-x\nX-Evil: 1"}, "REGISTRY_ADMIN_KEY holds spaces or characters"),
        ({"REGISTRY_READ_KEY": "ключ"}, "REGISTRY_READ_KEY holds spaces or characters"),
    ],
)
def test_what_cannot_be_used_is_named(
    environ: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotAsk, match=words):
        target(None, None, None, environ)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotAsk, match="there is no such file"):
        target(None, tmp_path / "none.env", None, {})


def ssl_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "url", "words"),
    [
        (ConnectionRefusedError(111, "x"), "http://a", "connection refused; is it running?"),
        (TimeoutError(), "http://a", "no answer within 5 s"),
        (ConnectionResetError(104, "x"), "http://a", "is it https://?"),
        (ssl_error("WRONG_VERSION_NUMBER"), "https://a", "is it http:// rather than https://?"),
        (ssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "https://a", "set REGISTRY_TLS_CERT and REGISTRY_TLS_KEY"),
        (OSError(113, "x"), "http://a", "no route to host"),
        (ValueError("odd"), "http://a", "odd; check --url"),
    ],
)
def test_why_there_was_no_answer_says_what_to_do(error: Exception, url: str, words: str) -> None:
    assert words in why(error, Target(url), 5.0)


def test_a_registrys_start_does_not_load_what_only_these_commands_need() -> None:
    needed = ("rich.console", "rich.table", "http.client")
    code = f"import sys, registry.cli; print([name for name in {needed} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.strip() == "[]"
