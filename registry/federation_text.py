"""What `members` and `status` show: values of the API in, rows out. Nothing is asked and nothing printed here."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from federation.tls import WARN_BEFORE_S, expiry_sentence

NOTHING = "-"
MEMBER_HEADINGS = ("ID", "REGION", "STATE", "SINCE", "REACHABLE", "LAG", "RTT", "NODES")
ADDRESS_HEADINGS = ("ID", "URL", "ERROR")
ALERT_HEADINGS = ("ALERT", "COUNT", "LAST", "DETAIL")
NOTED_S = 180.0  # what keeps links from being made is said again every minute
_OF_LINKS = (
    "identity_changed",
    "identity_replaced",
    "member_removed",
    "refused",
    "same_id",
    "wrong_certificate",
    "wrong_secret",
    "wrong_signature",
    "wrong_version",
)
_STATUSES = re.compile(r'^dagi_registry_nodes\{status="([a-z]+)"\} ([0-9.e+]+)$', re.MULTILINE)
_CERTIFICATES = re.compile(
    r'^dagi_registry_certificate_expires_in_seconds\{file="((?:[^"\\]|\\.)*)"\} ([-0-9.e+]+)$', re.MULTILINE
)
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def duration(seconds: float | None) -> str:
    """For people: two units at most, and no more digits than matter."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for index, (unit, size) in enumerate(_UNITS):
        if whole >= size:
            count, rest = divmod(whole, size)
            if index + 1 < len(_UNITS) and count < 10:
                smaller, smaller_size = _UNITS[index + 1]
                return f"{count} {unit} {rest // smaller_size} {smaller}" if rest // smaller_size else f"{count} {unit}"
            return f"{count} {unit}"
    return "0 s"


def milliseconds(value: float | None) -> str:
    """A round trip."""
    if value is None:
        return NOTHING
    return f"{value:.1f} ms" if value < 9.95 else f"{value:,.0f} ms"


def number(value: int) -> str:
    """With thousands apart."""
    return f"{value:,}"


def age_s(then: str | None, now: str) -> float | None:
    """Seconds between two times of one registry: its own clock's, so that ours may be wrong."""
    if then is None:
        return None
    return max(0.0, (datetime.fromisoformat(now) - datetime.fromisoformat(then)).total_seconds())


def plain(text: object) -> str:
    """Others' words, which must not command a terminal."""
    return "".join(mark if mark.isprintable() else "?" for mark in str(text))


def nodes_by_status(exposition: str) -> dict[str, int]:
    """From GET /metrics in Prometheus' format."""
    return {status: int(float(count)) for status, count in _STATUSES.findall(exposition)}


def certificates_by_file(exposition: str) -> dict[str, float]:
    """How long each is good for, in seconds, from the same."""
    return {name: float(left_s) for name, left_s in _CERTIFICATES.findall(exposition)}


# members


def member_rows(view: Mapping[str, Any], reasons: Sequence[str]) -> list[dict[str, Any]]:
    """One row a registry, the one that was asked first. `view`: GET /api/v1/federation. `reasons`: why that
    registry is not ready."""
    me, now = view["self"], view["as_of"]
    own = {
        "registry_id": me["registry_id"], "region": me["region"], "url": me["url"], "self": True,
        "state": "not ready" if reasons else "up", "reachable": True, "lag_s": None, "rtt_ms": None,
        "nodes": me["nodes"], "since": None, "since_s": None, "error": "; ".join(reasons) or None, "forgotten": False,
    }  # fmt: skip
    kept = ("registry_id", "region", "url", "state", "reachable", "lag_s", "rtt_ms", "nodes", "since", "error")
    return [own] + [
        {
            **{name: peer[name] for name in kept},
            "self": False,
            "since_s": age_s(peer["since"], now),
            # It left the roster, which alone tells identities, and nobody dials it. What it wrote stays.
            "forgotten": peer["state"] == "down"
            and peer["registry_id"] is not None
            and peer["identity"] is None
            and peer["url"] is None,
        }
        for peer in view["peers"]
    ]


def member_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Under MEMBER_HEADINGS."""
    return (
        name_of(row),
        plain(row["region"] or NOTHING),
        row["state"],
        duration(row["since_s"]),
        NOTHING if row["self"] else "yes" if row["reachable"] else "no",
        duration(row["lag_s"]),
        milliseconds(row["rtt_ms"]),
        number(row["nodes"]),
    )


def address_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Under ADDRESS_HEADINGS. A registry behind NAT has no URL that others could dial. The last error of a link
    that is up again is none any more."""
    if row["forgotten"]:
        return name_of(row), NOTHING, "not in the roster"
    error = row["error"] if row["state"] != "up" else None
    return name_of(row), plain(row["url"] or "none: it only dials out"), plain(error or NOTHING)


def name_of(row: Mapping[str, Any]) -> str:
    """What to call it: nobody has answered yet at some URLs."""
    name = plain(row["registry_id"] or "(unknown)")
    return f"{name} (self)" if row["self"] else name


def problems(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes these commands end with status 1, a sentence each."""
    found = []
    for row in rows:
        error = f": {plain(row['error'])}" if row["error"] else ""
        if row["self"] and row["state"] != "up":
            found.append(f"{plain(row['registry_id'])} is not ready{error}")
        elif row["forgotten"]:
            continue
        elif row["state"] == "down" and row["registry_id"] is None:
            found.append(f"no registry was reached at {plain(row['url'])}{error}")
        elif row["state"] == "down":
            how = "is down" if row["since_s"] is None else f"has been down for {duration(row['since_s'])}"
            found.append(f"{plain(row['registry_id'])} {how}{error}")
    return found


def notes(view: Mapping[str, Any]) -> list[str]:
    """Why links are not made, or who is in no roster any more, said lately: also of registries that are in nobody's
    list, as they were refused."""
    found = []
    for code in _OF_LINKS:
        alert = view["alerts"].get(code)
        ago_s = age_s(alert["last_at"], view["as_of"]) if alert else None
        if ago_s is not None and ago_s < NOTED_S:
            found.append(f"{duration(ago_s)} ago: {plain(alert['detail'])}")
    return found


# status


def status_report(
    url: str,
    about: Mapping[str, Any],
    reasons: Sequence[str],
    nodes: Mapping[str, int],
    view: Mapping[str, Any] | None,
    certificates: Mapping[str, float],
) -> dict[str, Any]:
    """Everything in one object. `about`: GET / and GET /health. `view`: None while there is none. `certificates`: for
    how long (seconds) each is good."""
    report: dict[str, Any] = {
        "registry_id": about.get("registry_id"),
        "region": about.get("region"),
        "url": url,
        "ready": not reasons,
        "reasons": list(reasons),
        "version": about.get("version"),
        "uptime_s": about.get("uptime_seconds"),
        "nodes": dict(nodes),
        "certificates_expire_in_s": dict(certificates),
    }
    if view is None:
        return {**report, "problems": [f"{plain(about.get('registry_id'))} is not ready: {plain('; '.join(reasons))}"]}
    rows = member_rows(view, reasons)
    peers = [row for row in rows[1:] if not row["forgotten"]]
    slowest = max((row for row in peers if row["lag_s"] is not None), key=lambda row: row["lag_s"], default=None)
    return {
        **report,
        "url": view["self"]["url"],
        "federated": view["self"]["federated"],
        "records": view["self"]["records"],
        "peers": {"up": sum(row["state"] == "up" for row in peers), "total": len(peers)},
        "worst_lag_s": slowest["lag_s"] if slowest else None,
        "worst_lag_of": slowest["registry_id"] if slowest else None,
        "conflicts": view["conflicts"],
        "expiry_hold_s": view["expiry_hold_s"],
        "alerts": view["alerts"],
        "as_of": view["as_of"],
        "problems": problems(rows) + _expiring(certificates),
    }


def status_lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how it is), for people."""
    ready = "yes" if report["ready"] else f"no: {plain('; '.join(report['reasons']))}"
    lines = [
        ("Registry", plain(report["registry_id"])),
        ("Ready", ready),
        ("Region", plain(report["region"])),
        ("URL", plain(report["url"])),
        ("Version", f"{plain(report['version'])}, up for {duration(report['uptime_s'])}"),
        ("Nodes", _nodes(report["nodes"])),
        *(
            ("Certificate", f"{plain(name)}, good for {duration(left_s)}" if left_s > 0 else f"{plain(name)}, EXPIRED")
            for name, left_s in report["certificates_expire_in_s"].items()
        ),
    ]
    if "records" not in report:
        return lines
    peers, hold_s = report["peers"], report["expiry_hold_s"]
    alone = "none" if report["federated"] else "none: started without REGISTRY_FEDERATION_SECRET"
    return [
        *lines,
        ("Records", f"{number(report['records'])}, of deleted nodes and of registries too"),
        ("Peers", f"{peers['up']} of {peers['total']} up" if peers["total"] else alone),
        ("Lag", _worst(report)),
        ("Conflicts", number(report["conflicts"])),
        ("Expiry hold", f"no node is called offline for another {duration(hold_s)}" if hold_s else "none"),
        ("Alerts", number(sum(alert["count"] for alert in report["alerts"].values())) if report["alerts"] else "none"),
    ]


def _expiring(certificates: Mapping[str, float]) -> list[str]:
    return [expiry_sentence(plain(name), left_s) for name, left_s in certificates.items() if left_s <= WARN_BEFORE_S]


def _nodes(nodes: Mapping[str, int]) -> str:
    counted = ", ".join(f"{number(count)} {status}" for status, count in nodes.items() if count)
    return f"{number(sum(nodes.values()))} in all" + (f": {counted}" if counted else "")


def _worst(report: Mapping[str, Any]) -> str:
    if report["worst_lag_s"] is None:
        return NOTHING if not report["peers"]["total"] else "unknown: no peer was heard yet"
    return f"{duration(report['worst_lag_s'])} behind {plain(report['worst_lag_of'])} at worst"


def alert_cells(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Under ALERT_HEADINGS, the newest first."""
    alerts = sorted(report.get("alerts", {}).items(), key=lambda item: item[1]["last_at"], reverse=True)
    return [
        (
            plain(code),
            number(alert["count"]),
            f"{duration(age_s(alert['last_at'], report['as_of']))} ago",
            plain(f"{alert['peer']}: {alert['detail']}" if alert["peer"] else alert["detail"]),
        )
        for code, alert in alerts
    ]
