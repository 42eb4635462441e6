"""Names: the rules as tables."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.names import NODE_ID_PATTERN, canonical_region, machine_fingerprint, made_node_id, parse_model

MODELS = [
    ("qwen3", "qwen3", "latest"),
    ("qwen3:8b", "qwen3", "8b"),
    ("QWEN3:8B", "qwen3", "8b"),
    (" qwen3:8b ", "qwen3", "8b"),
    ("qwen3:", "qwen3", "latest"),
    ("deepseek-r1:70b", "deepseek-r1", "70b"),
    ("library/qwen3", "qwen3", "latest"),
    ("registry.ollama.ai/library/qwen3:8b", "qwen3", "8b"),
    ("registry.ollama.ai/qwen3", "qwen3", "latest"),
    ("someone/qwen3:8b", "someone/qwen3", "8b"),
    ("hf.co/someone/Model-GGUF:Q4_K_M", "hf.co/someone/model-gguf", "q4_k_m"),
    ("localhost:5000/ns/m:tag", "localhost:5000/ns/m", "tag"),
    ("registry.ollama.ai/someone/m", "someone/m", "latest"),
    ("/qwen3 : 8b", "qwen3", "8b"),
    ("registry.ollama.ai/registry.ollama.ai/m", "m", "latest"),
]


@pytest.mark.parametrize(("text", "family", "tag"), MODELS)
def test_model_names(text: str, family: str, tag: str) -> None:
    name = parse_model(text)
    assert (name.family, name.tag, name.full) == (family, tag, f"{family}:{tag}")


@given(st.text())
def test_a_full_model_name_means_itself(text: str) -> None:
    name = parse_model(text)
    assert parse_model(name.full) == name


def test_no_tag_is_not_any_tag() -> None:
    assert parse_model("qwen3") == parse_model("qwen3:latest") != parse_model("qwen3:8b")


REGIONS = [
    ("eu", "eu"),
    ("EU", "eu"),
    (" Europe ", "eu"),
    ("eu-west-1", "eu"),
    ("euro", "euro"),
    ("us-east", "us"),
    ("america", "us"),
    ("ap-south", "ap-south"),
    ("special", "x*y"),
]


@pytest.mark.parametrize(("region", "canonical"), REGIONS)
def test_regions(region: str, canonical: str) -> None:
    aliases = {"europe": "eu", "eu-*": "eu", "america": "us", "us-*": "us", "special": "x*y"}
    assert canonical_region(region, aliases) == canonical


def test_an_exact_alias_stands_over_a_pattern() -> None:
    assert canonical_region("eu-home", {"eu-*": "eu", "eu-home": "home"}) == "home"


@given(st.text(max_size=300), st.integers(0, 50))
def test_made_ids_are_good_ids(hostname: str, attempt: int) -> None:
    made = made_node_id(hostname, "f" * 32, attempt)
    assert re.fullmatch(NODE_ID_PATTERN, made)
    assert re.fullmatch(r"node-.+-[0-9a-f]{8}", made)


def test_made_ids_are_the_same_for_the_same_machine_and_attempt() -> None:
    one, other = (machine_fingerprint("id", host, ip, "192.0.2.1") for host, ip in (("a", "b"), ("c", "d")))
    assert one == other  # a machine that has an id is known by it alone
    made = {made_node_id("Host.Example", one, attempt) for attempt in range(20)}
    assert len(made) == 20
    assert made_node_id("host.example", one, 3) in made


def test_machines_without_an_id_are_told_apart_by_name_and_addresses() -> None:
    facts = [("a", "b", "c"), ("x", "b", "c"), ("a", "x", "c"), ("a", "b", "x"), ("ab", "", "c"), ("a", "", "bc")]
    assert len({machine_fingerprint(None, *three) for three in facts}) == len(facts)
    assert machine_fingerprint("", "a", "b", "c") == machine_fingerprint(None, "a", "b", "c")
