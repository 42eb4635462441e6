"""The links of one registry: WebSockets to its peers, dialled by either side, proved by both.

The shell of the federation. It decides little: handshake.py says who the other side is, dialling.py whom to dial,
wire.py what a frame means. Nothing a peer sends, or does not read, makes anybody wait, and every structure that
a peer can fill has an end.
"""

import asyncio
import ipaddress
import logging
import os
import secrets
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import aiohttp
from aiohttp import web

from federation.dialling import Dialling, keeps
from federation.handshake import LINK_VERSION, NONCE_SIZE, Acceptor, Dialler, Identity, Peer, Refused
from federation.identity import IdentityError, load_or_create_identity
from federation.link import Breach, DialledSocket, Gone, Limits, Link, Socket
from federation.messages import Message
from federation.ports import Rng
from federation.roster import Advert, is_url, pack_advert
from federation.tls import alert_sentence
from federation.wire import MAX_FRAME_SIZE, WireError, encode

__all__ = [
    "LINK_PATH", "Identity", "IdentityError", "Limits", "Links", "Member", "PeerState", "load_or_create_identity",
]  # fmt: skip

LINK_PATH = "/federation/v1/link"

_MAX_LINKS = 1_024  # ten times the registries planned for
_MAX_REMEMBERED = 1_024  # errors, alerts and offenders, each
_MAX_ALERTS = 20  # a minute and code
_MAX_MESSAGE_SIZE = MAX_FRAME_SIZE + 1  # aiohttp refuses what reaches it

_ADVICE = {
    "malformed": "is it a registry, and nothing between changes what it says?",
    "wrong_secret": "set the same REGISTRY_FEDERATION_SECRET at both",
    "wrong_version": "upgrade the older of the two",
    "wrong_signature": "somebody who knows the federation's secret claims to be it: change the secret everywhere",
    "identity_changed": "if it lost its data folder, remove its entry: dagi-registry members --forget {peer}",
    "same_id": "give one of the two another --registry-id",
    "wrong_certificate": "it needs one of its own: dagi-registry ca issue --registry {peer}",
    "bad_frame": "run the same version at both; the link is cut, and made again later",
    "closed": "run the same version at both; the link is cut, and made again later",
    "no_secret": "set REGISTRY_FEDERATION_SECRET here",
    "slow": "it does not take what is sent to it; it will ask for what it lacks once it is back",
}
_ADVICE_WHEN_REFUSED = {
    "wrong_secret": _ADVICE["wrong_secret"],
    "wrong_version": _ADVICE["wrong_version"],
    "wrong_signature": "our identity.key and what we sent do not match: start this registry again",
    "identity_changed": "if our data folder was lost, remove our entry there: dagi-registry members --forget {me}",
    "same_id": _ADVICE["same_id"],
    "wrong_certificate": "we need a certificate of our own: dagi-registry ca issue --registry {me}",
    "malformed": "run the same version at both",
    "bad_frame": "run the same version at both",
}
_ERRORS = {
    "lost": "the connection was lost",
    "silent": "nothing was heard for {silent_s:g} s",
    "slow": "it took nothing for {stuck_s:g} s, or too much is waiting for it",
    "timeout": "it did not finish the handshake within {handshake_s:g} s",
    "stopping": "one side was stopped",
    "paused": "one side has paused its links",
    "replaced": "a newer link took its place",
    "duplicate": "there is a link already",
    "shunned": "it may not come back yet, after it broke the protocol",
    "full": f"there are {_MAX_LINKS} links already",
    "fault": "one side failed; see its log",
}

_log = logging.getLogger(__name__)
_Value = TypeVar("_Value")
State = Literal["up", "suspect", "down"]


class Member(Protocol):
    """The owner of the engine. Called on the event loop, and never from within a call of `Links.send` or `close`."""

    def connected(self, peer: str) -> None:
        """A link to that registry is up."""

    def disconnected(self, peer: str) -> None:
        """It is up no more. Once for each `connected`."""

    async def ready(self) -> None:
        """Return once messages are wanted. Until then they wait on their links, and may be taken in one go."""

    def received(self, peer: str, message: Message) -> None:
        """A message came."""

    def alert(self, code: str, detail: str, peer: str | None = None) -> None:
        """Somebody should know. `peer`: only who proved to be that one."""

    def pinned(self, registry_id: str) -> bytes | None:
        """The public key that the roster has for the id."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """One peer, or one URL at which no registry has answered. `since_s`: for how long it has been in its state.
    `dialled`: by us; None without a link. `rtt_ms`: the least of the last five. Counters are of the link."""

    registry_id: str | None
    url: str | None
    region: str | None
    identity: bytes | None
    state: State
    dialled: bool | None
    since_s: float
    rtt_ms: float | None = None
    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    queued_bytes: int = 0
    last_error: str | None = None


class _Remembered(Generic[_Value]):
    """A mapping that forgets what was put first: its keys are what peers say."""

    def __init__(self) -> None:
        self._values: OrderedDict[object, _Value] = OrderedDict()

    def get(self, key: object) -> _Value | None:
        return self._values.get(key)

    def put(self, key: object, value: _Value) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > _MAX_REMEMBERED:
            self._values.popitem(last=False)


@dataclass(slots=True)
class _Attempt:
    """A link that is being made. `who`: as people know it. `peer`: once it is proved. `named`: the registry
    that its certificate names."""

    who: str
    url: str | None = None
    socket: Socket | None = None
    peer: Peer | None = None
    named: str | None = None


class Links:
    """All links. Between `start` and `stop` it dials whom it should, and `accept` takes who dials."""

    def __init__(
        self,
        identity: Identity,
        member: Member,
        seeds: Iterable[str],
        rng: Rng,
        *,
        ssl_context: ssl.SSLContext | None = None,
        named: Callable[[Mapping[str, Any] | None], str | None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
    ) -> None:
        """`ssl_context`: for dialling https peers. `named`: the registry that a certificate names, as `ssl` tells of
        one; with it no link comes to be unless each side's certificate is its own. ValueError: a seed, or what we
        say of ourselves, is of a wrong form."""
        seeds = list(seeds)
        for seed in seeds:
            if not is_url(seed):
                raise ValueError(f"the peer {seed!r} is no URL of a registry: http(s)://host[:port][/path]")
        pack_advert(Advert(identity.url, identity.region, identity.public_key, LINK_VERSION))
        self.counts: Counter[str] = Counter()  # handshakes that failed and links that ended, by code
        self._identity, self._member = identity, member
        self._ssl, self._named, self._monotonic = ssl_context, named, monotonic
        self._limits = limits or Limits()
        self._dialling = Dialling(identity.registry_id, seeds, rng)
        self._roster: Mapping[str, Advert] = {}
        self._links: dict[str, Link] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._shaking: set[asyncio.Task[Any]] = set()  # those of them that have no link yet
        self._half_open: Counter[str] = Counter()  # by address; those who dialled us
        self._alerted: _Remembered[float] = _Remembered()
        self._alerts: Counter[str] = Counter()  # in this minute, by code
        self._alerts_from_s = monotonic()
        self._shunned: _Remembered[float] = _Remembered()
        self._errors: _Remembered[str] = _Remembered()  # by id or URL
        self._down_s: _Remembered[float] = _Remembered()  # since when
        self._client: aiohttp.ClientSession | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._paused: str | None = None
        self._ticked_s = self._started_s = monotonic()

    # life

    async def start(self) -> None:
        """Begin to dial, and to accept."""
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),  # links last: none may wait for another
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(_refuse_redirects,),
            ws_response_class=DialledSocket,
        )
        self._ticked_s = self._started_s = self._monotonic()
        self._ticker = asyncio.create_task(self._tick_for_ever())
        self._dial_due()

    async def stop(self) -> None:
        """End all links, politely, and wait until no task and no socket is left of them: a second at most."""
        client, self._client = self._client, None
        if client is None or self._ticker is None:
            return
        self._ticker.cancel()
        self._end_all("stopping")
        await asyncio.wait([self._ticker, *self._tasks], timeout=self._limits.goodbye_s + 0.2)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=0.2)
        await client.close()

    def pause(self, reason: str) -> None:
        """Close all links, dial nobody and accept nobody, until `resume`."""
        self._paused = reason
        self._end_all("paused")

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = None
        self._dial_due()

    # what the member asks

    def send(self, peer: str, message: Message) -> None:
        """Queue it for that registry, if there is a link. Never waits, never raises."""
        link = self._links.get(peer)
        if link is None or link.ending is not None:
            return
        try:
            frame = encode(message)
        except Exception as error:  # whatever it is, it is ours, and the link goes on
            self._alert("unsendable", f"our fault: {error}; {peer} does not get this message", peer)
            return
        if not link.put(frame):
            self._end(link, "slow")

    def close(self, peer: str, reason: str) -> None:
        """End the link to a registry that does not keep the protocol; it may come back a little later."""
        link = self._links.get(peer)
        if link is not None and link.ending is None:
            self._shun(peer)
            self._end(link, "closed", reason)

    def know(self, roster: Mapping[str, Advert]) -> None:
        """Who there is, by id: whom else to dial. All of them, each time."""
        self._roster = dict(roster)
        self._dialling.know({registry_id: advert.url for registry_id, advert in roster.items()})
        self._dial_due()

    def peers(self) -> list[PeerState]:
        """Every link, every other member of the roster, and every seed at which nobody has answered."""
        now_s = self._monotonic()
        states = [self._state_of(link, now_s) for link in self._links.values() if link.ending is None]
        seen = {state.registry_id for state in states} | {self._identity.registry_id}
        for url, registry_id in self._dialling.targets():
            if registry_id is None or registry_id not in seen:
                seen.add(registry_id or url)
                states.append(self._absent(registry_id, url, now_s))
        states += [self._absent(other, None, now_s) for other in self._roster if other not in seen]
        return states

    # accepting

    async def accept(
        self, request: web.Request, named: str | None = None, address: str | None = None
    ) -> web.StreamResponse:
        """The handler of GET `LINK_PATH`. It returns when the link has ended. `named`: the registry that the caller's
        certificate names; `address`: the caller's, where somebody stands between us."""
        address = _network_of(address or request.remote)
        refusal = self._refusal(address)
        transport = request.transport
        if refusal is not None or transport is None:
            status, detail = refusal or (503, "the connection was lost")
            return _answer(status, detail)
        ws = web.WebSocketResponse(timeout=self._limits.goodbye_s, compress=False, max_msg_size=_MAX_MESSAGE_SIZE)
        if not ws.can_prepare(request):
            return _answer(426, "registries link here, over WebSocket", Upgrade="websocket")
        self._half_open[address] += 1
        try:
            await ws.prepare(request)
        except BaseException:
            self._release(address)
            raise
        task = self._spawn(self._accepted(Socket(ws, transport), address, named))
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        return ws

    def _refusal(self, address: str) -> tuple[int, str] | None:
        """Status and detail for those who cannot be let in now, whoever they are."""
        if not self._identity.secret:
            return 403, "this registry has no federation: REGISTRY_FEDERATION_SECRET is not set here"
        if self._client is None:
            return 503, "this registry is starting or stopping"
        if self._paused is not None:
            return 503, f"this registry has paused its links: {self._paused}"
        limits = self._limits
        if self._half_open.total() >= limits.half_open or self._half_open[address] >= limits.half_open_per_address:
            self.counts["busy"] += 1
            return 503, "too many registries are linking at once; try again"
        return None

    async def _accepted(self, socket: Socket, address: str, named: str | None) -> None:
        try:
            link = await self._attempt(_Attempt(address, socket=socket, named=named), self._prove_as_acceptor)
        finally:
            self._release(address)
        if link is not None:
            await self._serve(link)

    def _release(self, address: str) -> None:
        self._half_open[address] -= 1
        if not self._half_open[address]:
            del self._half_open[address]

    async def _prove_as_acceptor(self, attempt: _Attempt) -> Link:
        socket = attempt.socket
        assert socket is not None
        acceptor = Acceptor(self._identity, secrets.token_bytes(NONCE_SIZE), self._member.pinned)
        await socket.ws.send_str(acceptor.receive(await socket.next_text()))
        welcome = acceptor.receive(await socket.next_text())
        assert acceptor.peer is not None
        peer = attempt.peer = acceptor.peer
        attempt.who = peer.registry_id
        self._vouched(attempt, peer)
        link = Link(socket, peer, None, self._limits, self._monotonic())
        self._object(link)
        await socket.ws.send_str(welcome)
        return self._admit(link)

    # dialling

    def _dial_due(self) -> None:
        if self._client is None or self._paused is not None or not self._identity.secret:
            return
        now_s = self._monotonic()
        linked = {peer: now_s - link.up_s for peer, link in self._links.items() if link.ending is None}
        for url in self._dialling.due(now_s, linked):
            self._spawn(self._dial(url))

    async def _dial(self, url: str) -> None:
        held_s = 0.0
        try:
            link = await self._attempt(_Attempt(url, url), self._prove_as_dialler)
            if link is not None:
                await self._serve(link)
                held_s = self._monotonic() - link.up_s
        finally:
            self._dialling.over(url, self._monotonic(), held_s)

    async def _prove_as_dialler(self, attempt: _Attempt) -> Link:
        assert attempt.url is not None
        attempt.socket = socket = await self._connect(attempt.url)
        if self._named is not None:
            attempt.named = self._named(socket.transport.get_extra_info("peercert"))
        dialler = Dialler(self._identity, secrets.token_bytes(NONCE_SIZE), self._member.pinned)
        await socket.ws.send_str(dialler.first())
        proof = dialler.receive(await socket.next_text())
        assert proof is not None
        assert dialler.peer is not None
        peer = attempt.peer = dialler.peer
        attempt.who = f"{peer.registry_id} at {attempt.url}"
        self._vouched(attempt, peer)
        self._dialling.learned(attempt.url, peer.registry_id)
        existing = self._links.get(peer.registry_id)
        if existing is not None and not self._is_suspect(existing):
            raise Gone("duplicate")  # it dialled us meanwhile, or the URL of another led here
        link = Link(socket, peer, attempt.url, self._limits, self._monotonic())
        self._object(link)
        await socket.ws.send_str(proof)
        dialler.receive(await socket.next_text())
        return self._admit(link)

    async def _connect(self, url: str) -> Socket:
        if self._client is None:
            raise Gone("stopping")
        scheme, rest = url.split("://", 1)
        ws = await self._client.ws_connect(
            f"{scheme.lower().replace('http', 'ws')}://{rest}{LINK_PATH}",
            ssl=self._ssl or True,
            compress=0,
            max_msg_size=_MAX_MESSAGE_SIZE,
            timeout=aiohttp.ClientWSTimeout(ws_close=self._limits.goodbye_s),
        )
        assert isinstance(ws, DialledSocket)
        assert ws.transport is not None
        return Socket(ws, ws.transport)

    # handshakes

    async def _attempt(self, attempt: _Attempt, prove: Callable[[_Attempt], Awaitable[Link]]) -> Link | None:
        """A link, or None and everything said, counted and closed."""
        task = asyncio.current_task()
        assert task is not None
        self._shaking.add(task)
        code = "stopping"  # what it is if we are cancelled
        link = None
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                link = await prove(attempt)
        except Exception as error:
            code = self._failed(attempt, error)
        finally:
            self._shaking.discard(task)
            if link is None and attempt.socket is not None:
                await attempt.socket.hang_up(code, self._limits.goodbye_s)
        return link

    def _failed(self, attempt: _Attempt, error: Exception) -> str:
        """What is said to the other side; people here are told what they can do."""
        peer = attempt.peer.registry_id if attempt.peer is not None else None
        match error:
            case Refused(code="myself"):
                code, detail = "myself", "it is this registry itself"
                if attempt.url is not None:
                    self._dialling.myself(attempt.url)
            case Refused():
                code, detail = error.code, error.detail
                self._advise(code, attempt.who, detail, None, about=error.about)
                self._note(error.about, detail)
            case Gone():
                code, detail = error.code, self._explained(error.code)
                self._advise_when_refused(code, attempt.who, peer)
            case TimeoutError():
                code, detail = "timeout", self._explained("timeout")
            case aiohttp.ClientError() | OSError() | ValueError():
                code, detail = "lost", _said_by(error)
            case _:
                _log.error("a handshake with %s failed by our fault", attempt.who, exc_info=error)
                code, detail = "fault", f"our fault: {type(error).__name__}"
        self.counts[code] += 1
        self._note(attempt.url, detail)
        self._note(peer, detail)
        return code

    def _vouched(self, attempt: _Attempt, peer: Peer) -> None:
        """Raises Refused unless the certificate, where one is needed, is that registry's own."""
        if self._named is None or attempt.named == peer.registry_id:
            return
        shown = f"its certificate is {attempt.named}'s" if attempt.named else "no certificate of it names a registry"
        raise Refused("wrong_certificate", f"it proved to be {peer.registry_id}, but {shown}", peer.registry_id)

    def _object(self, link: Link) -> None:
        """Raises Gone if the link is not to be, though the peer is who it says."""
        peer = link.peer.registry_id
        if self._client is None or self._paused is not None:
            raise Gone("paused")
        if self._monotonic() < (self._shunned.get(peer) or 0.0):
            raise Gone("shunned")
        existing = self._links.get(peer)
        if existing is None:
            if len(self._links) >= _MAX_LINKS:
                raise Gone("full")
        elif not (
            self._is_suspect(existing) or keeps(self._identity.registry_id, peer, link.dialled, existing.dialled)
        ):
            raise Gone("duplicate")

    def _admit(self, link: Link) -> Link:
        """Make it the link to that registry. Raises Gone."""
        self._object(link)  # again: much may have happened while the last text was sent, or came
        peer = link.peer.registry_id
        existing = self._links.get(peer)
        if existing is not None:
            self._end(existing, "replaced")
            self._tell_disconnected(existing)
        self._links[peer] = link
        link.up_s = link.heard_s = self._monotonic()
        link.told = True
        try:
            self._member.connected(peer)
        except Exception:
            self._end(link, "fault")
            raise
        return link

    def _is_suspect(self, link: Link) -> bool:
        return link.ending is not None or link.is_silent(self._monotonic(), self._limits.suspect_s)

    # links that are up

    async def _serve(self, link: Link) -> None:
        """Until it ends."""
        peer = link.peer.registry_id

        def received(message: Message) -> None:
            if link.ending is None:
                self._member.received(peer, message)

        reader = asyncio.create_task(link.read(received, self._member.ready, self._monotonic))
        writer = asyncio.create_task(link.write())
        link.tasks = [reader, writer]
        link.tick(self._monotonic())  # the first ping
        try:
            if link.ending is None:
                await asyncio.wait(link.tasks, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait([reader], timeout=self._limits.goodbye_s)  # it knows better why it ended
        finally:
            for task in link.tasks:
                task.cancel()
            results = await asyncio.gather(*link.tasks, return_exceptions=True)
            self._conclude(link, [result for result in results if not isinstance(result, asyncio.CancelledError)])
            self._tell_disconnected(link)
            await link.socket.hang_up(link.ending or "lost", self._limits.goodbye_s)

    def _conclude(self, link: Link, results: list[str | BaseException]) -> None:
        """Why it ended, if nobody has said so."""
        peer = link.peer.registry_id
        for result in results:
            if link.ending is not None:
                break
            match result:
                case WireError() | Breach():
                    cause = result.fault if isinstance(result, WireError) else result.cause
                    self.counts[f"bad_frame_{cause}"] += 1
                    self._shun(peer)
                    self._advise("bad_frame", peer, str(result), peer, cause=cause)
                    self._end(link, "bad_frame", str(result))
                case str() as code:
                    self._advise_when_refused(code, peer, peer)
                    self._end(link, code)
                case BaseException():
                    _log.error("the link to %s failed by our fault", peer, exc_info=result)
                    self._alert("fault", f"the link to {peer} failed by our fault: {type(result).__name__}", peer)
                    self._end(link, "fault")
        if link.ending is None:
            self._end(link, "stopping")

    def _end(self, link: Link, code: str, detail: str = "") -> None:
        """From now on nothing is taken from it or given to it. The member is told in the loop's next turn, as
        it may be in the midst of something."""
        if link.ending is not None:
            return
        link.ending = code
        peer = link.peer.registry_id
        detail = detail or self._explained(code)
        self.counts[code] += 1
        self._note(peer, detail)
        self._note(link.url, detail)
        if code in ("slow", "closed"):
            self._advise(code, peer, detail, peer)
        for task in link.tasks:
            task.cancel()
        asyncio.get_running_loop().call_soon(self._tell_disconnected, link)

    def _end_all(self, code: str) -> None:
        for task in self._shaking:
            task.cancel()
        for link in list(self._links.values()):
            self._end(link, code)

    def _tell_disconnected(self, link: Link) -> None:
        if not link.told:
            return
        link.told = False
        peer = link.peer.registry_id
        if self._links.get(peer) is link:
            del self._links[peer]
        self._down_s.put(peer, self._monotonic())
        try:
            self._member.disconnected(peer)
        except Exception:
            _log.exception("the end of the link to %s could not be told", peer)

    def _shun(self, peer: str) -> None:
        self._shunned.put(peer, self._monotonic() + self._limits.shunned_s)

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._limits.tick_s)
            self._tick(self._monotonic())

    def _tick(self, now_s: float) -> None:
        stood_still = now_s - self._ticked_s >= self._limits.stall_s
        self._ticked_s = now_s
        for link in list(self._links.values()):
            if stood_still:
                link.excuse(now_s)
            if link.ending is None and (code := link.tick(now_s)) is not None:
                self._end(link, code)
        self._dial_due()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # what people are told

    def _advise(
        self, code: str, who: str, detail: str, peer: str | None, *, cause: str = "", about: str | None = None
    ) -> None:
        advice = _ADVICE[code].format(peer=about)
        self._alert(code, f"{who}: {detail}; {advice}", peer, cause or who)

    def _advise_when_refused(self, code: str, who: str, peer: str | None) -> None:
        advice = _ADVICE_WHEN_REFUSED.get(code)
        if advice is not None:
            advice = advice.format(me=self._identity.registry_id)
            self._alert("refused", f"{who} refuses us: {code}; {advice}", peer, f"{who} {code}")

    def _alert(self, code: str, detail: str, peer: str | None, cause: str = "") -> None:
        """Once a minute for each code, peer and cause, and not too often whatever they are: a stranger has as
        many addresses as it likes."""
        now_s = self._monotonic()
        if now_s - self._alerts_from_s >= self._limits.alert_again_s:
            self._alerts_from_s = now_s
            self._alerts.clear()
        key = (code, peer, cause)
        last_s = self._alerted.get(key)
        if last_s is not None and now_s - last_s < self._limits.alert_again_s:
            return
        self._alerted.put(key, now_s)
        self._alerts[code] += 1
        if self._alerts[code] <= _MAX_ALERTS:
            self._member.alert(code, detail, peer)

    def _explained(self, code: str) -> str:
        limits = self._limits
        text = _ERRORS.get(code, f"the other side refuses: {code}")
        return text.format(silent_s=limits.silent_s, stuck_s=limits.stuck_s, handshake_s=limits.handshake_s)

    def _note(self, key: str | None, error: str) -> None:
        if key is not None:
            self._errors.put(key, error)

    def _state_of(self, link: Link, now_s: float) -> PeerState:
        peer, advert = link.peer, self._roster.get(link.peer.registry_id)
        suspect = link.is_silent(now_s, self._limits.suspect_s)
        return PeerState(
            registry_id=peer.registry_id,
            url=link.url or peer.url or (advert.url if advert is not None else None),
            region=peer.region,
            identity=peer.identity,
            state="suspect" if suspect else "up",
            dialled=link.dialled,
            since_s=now_s - (link.heard_s + self._limits.suspect_s if suspect else link.up_s),
            rtt_ms=link.rtt_ms,
            frames_in=link.frames_in,
            frames_out=link.frames_out,
            bytes_in=link.bytes_in,
            bytes_out=link.bytes_out,
            queued_bytes=link.queued_bytes,
            last_error=self._errors.get(peer.registry_id),
        )

    def _absent(self, registry_id: str | None, url: str | None, now_s: float) -> PeerState:
        advert = self._roster.get(registry_id) if registry_id is not None else None
        down_s = self._down_s.get(registry_id) if registry_id is not None else None
        error = (self._errors.get(url) if url is not None else None) or self._errors.get(registry_id)
        return PeerState(
            registry_id=registry_id,
            url=url,
            region=advert.region if advert is not None else None,
            identity=advert.identity if advert is not None else None,
            state="down",
            dialled=None,
            since_s=now_s - (self._started_s if down_s is None else down_s),
            last_error=error,
        )


def _answer(status: int, detail: str, **headers: str) -> web.Response:
    """For whoever gets no WebSocket. The connection ends: a crowd of them must not sit on theirs."""
    answer = web.json_response({"detail": detail}, status=status, headers=headers)
    answer.force_close()
    return answer


async def _refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """A peer says where it is; it does not send us elsewhere."""
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise aiohttp.ClientError("it redirects: give the URL that it really has")
    return response


def _said_by(error: Exception) -> str:
    """Why a registry could not be dialled, in people's words. Nothing that a stranger wrote is repeated at length."""
    match error:
        case _ if (alert := alert_sentence(error)) is not None:
            return f"TLS failed: {alert}"
        case aiohttp.WSServerHandshakeError():
            return f"it answered {error.status} instead of linking"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return f"TLS failed: {error.os_error if hasattr(error, 'os_error') else error}"[:200]
        case aiohttp.ClientConnectorDNSError():
            return f"its name {error.host} is not known here"
        case aiohttp.ClientConnectorError():
            cause = error.os_error
            why = os.strerror(cause.errno) if cause.errno else str(cause)
            return f"{error.host}:{error.port} cannot be reached: {why}"[:200]
        case aiohttp.ServerDisconnectedError() | ConnectionError():
            return "it hung up"
        case _:
            return f"{type(error).__name__}: {error}"[:200]


def _network_of(remote: str | None) -> str:
    """Whose half-open connections are counted together: an IPv6 user has a whole /64."""
    try:
        address = ipaddress.ip_address(remote or "")
    except ValueError:
        return remote or "somebody"
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
