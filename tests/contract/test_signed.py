"""Signed registrations at a real writer: who may have an id, who hears that it has not, what operators can do."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from federation.signed import incarnation_of
from registry.errors import ApiError
from registry.keys import Principal
from registry.node import node_key, parse_token, rekeyed
from registry.signing import VERIFIED
from tests.support.regions import ANYONE, Worker, working
from tests.support.signing import body, signing_key
from tests.support.stores import Bench


@pytest.fixture
async def worker(real_region: Bench) -> AsyncIterator[Worker]:
    async with working(await real_region.worker()) as made:
        yield made


def owner(answer: dict[str, Any]) -> Principal:
    """Whoever has that node's key."""
    return Principal("node", answer["node_id"], b"", answer["api_key"])


async def refusal(call: Any) -> tuple[int, str]:
    with pytest.raises(ApiError) as raised:
        await call
    return raised.value.status, raised.value.code


async def test_a_signed_node_is_verified_at_once_and_stays_its_keys(worker: Worker) -> None:
    answer = await worker.register(who=ANYONE, **body())
    who, key = owner(answer), signing_key().public
    assert (answer["signature"], answer["labels"], answer["capabilities"]["models"]) == (
        VERIFIED, ["gpu", "fast"], ["qwen3:8b"],
    )  # fmt: skip
    token = parse_token(answer["token"])
    assert token is not None
    assert token.incarnation == incarnation_of(key)
    again = await worker.register(who=who, token=answer["token"], **body(counter=2, role="manager"))
    assert (again["signature"], again["role"]) == (VERIFIED, "manager")
    assert await refusal(worker.register(who=who, **body(counter=1))) == (409, "stale_document")
    assert await refusal(worker.register(who=who, **body(counter=3, key=2))) == (409, "signing_key_differs")
    assert await refusal(worker.register("n", who=who, role="unsigned")) == (409, "signing_key_differs")
    forged = body(counter=3)
    forged["signed"]["document"] = forged["signed"]["document"].replace("gpu", "cpu")
    assert await refusal(worker.register(who=who, **forged)) == (403, "bad_signature")
    entry = worker.directory.get("n")
    assert entry is not None
    assert (entry.signature, entry.token) == (VERIFIED, again["token"])


async def test_a_node_that_begins_to_sign_keeps_what_operators_want(worker: Worker) -> None:
    answer = await worker.register("n", who=ANYONE, role="worker")
    await worker.patch("n", status="maintenance", labels_add=["kept"])
    before = parse_token(answer["token"])
    signed = await worker.register(who=owner(answer), token=answer["token"], **body())
    after = parse_token(signed["token"])
    assert before is not None
    assert after is not None
    assert (after.life, after > before) == (before.life + 2, True)
    assert (signed["status"], signed["signature"], "kept" in signed["labels"]) == ("maintenance", VERIFIED, True)
    assert (await worker.beat("n", token=signed["token"]))["token"] == signed["token"]


async def test_an_admin_gives_an_id_to_another_key_and_the_old_one_hears_of_it(worker: Worker) -> None:
    first = await worker.register(who=ANYONE, **body())
    await worker.patch("n", labels_add=["kept"])
    second = await worker.register(**body(key=2))  # as an admin
    assert (second["signature"], "kept" in second["labels"]) == (VERIFIED, True)
    assert second["signing_key"] != first["signing_key"]
    assert await refusal(worker.beat("n", token=first["token"])) == (409, "signing_key_differs")
    assert (await worker.beat("n", token=second["token"]))["success"]
    lost = worker.register(who=owner(first), token=first["token"], **body(counter=2))
    assert await refusal(lost) == (409, "signing_key_differs")
    unsigned = await worker.register("n", role="unsigned")  # an admin may
    assert (unsigned["signature"], unsigned["signing_key"]) == (None, None)


async def test_what_was_deleted_is_anybodys_who_may_join(worker: Worker) -> None:
    await worker.register(who=ANYONE, **body())
    await worker.delete("n")
    answer = await worker.register(who=ANYONE, **body(key=2))
    assert answer["signature"] == VERIFIED


async def test_a_node_that_others_wrote_over_registers_again_with_its_next_heartbeat(worker: Worker) -> None:
    answer = await worker.register(who=ANYONE, **body())
    token = parse_token(answer["token"])
    record = worker.writer.engine.replica.get(node_key("n"))
    assert token is not None
    assert record is not None
    assert record.spec is not None
    altered = record.spec.payload.replace(b"198.51.100.7", b"203.0.113.66")
    writer = worker.writer
    _, effects = writer.engine.register(
        node_key("n"),
        altered,
        writer.now,
        incarnation=token.incarnation,
        judgement=record.judgement.payload,  # type: ignore[union-attr]  # it has one
    )
    await writer._kept(effects)
    worker.directory.check("n")
    entry = worker.directory.get("n")
    assert entry is not None
    assert entry.signature == "invalid"
    assert await refusal(worker.beat("n", token=answer["token"])) == (404, "no_such_node")
    assert await refusal(worker.beat("n")) == (404, "no_such_node")
    mended = await worker.register(who=owner(answer), token=answer["token"], **body(counter=2))
    assert (mended["signature"], mended["ip_address"]) == (VERIFIED, "198.51.100.7")
    assert (await worker.beat("n", token=mended["token"]))["success"]


async def test_a_restart_knows_nothing_and_finds_out(worker: Worker, real_region: Bench) -> None:
    await worker.register(who=ANYONE, **body())
    await worker.stop()
    async with working(await real_region.worker("w2")) as second:
        entry = second.directory.get("n")
        assert entry is not None
        assert entry.signature == "unverified"
        assert second.directory.check_next()
        assert entry.signature == VERIFIED


async def test_a_new_api_key_leaves_the_node_verified(worker: Worker) -> None:
    answer = await worker.register(who=ANYONE, **body())
    node = worker.writer.node("n")
    assert node is not None
    await worker.writer.put(node_key("n"), rekeyed(node, "ab" * 32).encode_spec())
    worker.directory.check("n")
    entry = worker.directory.get("n")
    assert entry is not None
    assert (entry.signature, entry.must_register) == (VERIFIED, False)
    assert (await worker.beat("n", token=answer["token"]))["success"]
