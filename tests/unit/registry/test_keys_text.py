"""What the commands of keys show."""

import shlex

import pytest

from registry.keys_text import HEADINGS, cells, duration_s, join_command, join_notes, urls_of

TOKEN = "sk-join-abc_-"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("24h", 86_400), (" 30D ", 2_592_000), ("2w", 1_209_600)],
)
def test_durations(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1h", "1.5h", "1y", "1h30m", "1e9", "٣h", "9" * 10])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        duration_s(text)


@pytest.mark.parametrize("curl", [True, False])
def test_the_command_survives_a_shell_and_carries_the_token_in_the_environment_alone(curl: bool) -> None:
    urls = ["http://registry.example.org:9205/a b;$(x)", "http://192.0.2.1:9205"]
    command = join_command(urls, TOKEN, curl=curl)
    assert "\n" not in command
    words = shlex.split(command)
    assert f"NODE_REGISTRY_URL={','.join(urls)}" in words
    assert [word for word in words if TOKEN in word] == [f"NODE_JOIN_TOKEN={TOKEN}"]
    assert words[-1] == ("-" if curl else "./scripts/join-network.sh")


@pytest.mark.parametrize(
    ("urls", "word", "said"),
    [
        (["http://127.0.0.1:9205"], "this machine only", True),
        (["http://127.0.0.1:9205", "http://192.0.2.1:9205"], "this machine only", False),
        (["https://registry.example.org"], "CA_CERT", True),
        (["http://registry.example.org"], "CA_CERT", False),
    ],
)
def test_notes(urls: list[str], word: str, said: bool) -> None:
    assert (word in " ".join(join_notes(urls, curl=False))) == said


def test_curl_is_told_of_a_private_authority_in_its_own_words() -> None:
    assert "--cacert" in " ".join(join_notes(["https://registry.example.org"], curl=True))
    assert "--cacert" not in " ".join(join_notes(["https://registry.example.org"], curl=False))


def test_urls_are_the_registrys_own_first_and_few() -> None:
    peers = [{"url": f"http://192.0.2.{number}"} for number in range(9)]
    view = {"self": {"url": "http://192.0.2.3"}, "peers": [{"url": None}, *peers]}
    assert urls_of(view) == ["http://192.0.2.3", "http://192.0.2.0", "http://192.0.2.1", "http://192.0.2.2"]


def test_a_row_has_a_cell_for_each_heading_and_nothing_that_commands_a_terminal() -> None:
    key = {
        "key_id": "a" * 24, "kind": None, "name": "\x1b[2J", "status": "active", "scopes": [], "node_id": None,
        "expires_at": "1970-01-03T00:00:00.000Z", "last_used_at": "1970-01-01T00:00:00.000Z", "max_uses": 3, "uses": 1,
    }  # fmt: skip
    row = cells(key, 90.0)
    assert len(row) == len(HEADINGS)
    assert row == ("a" * 24, "unknown", "?[2J", "active", "-", "47h", "90s", "1/3")
