"""Who this agent is to registries: its id, the key and token that go with requests, and when it has to be another."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from agent.identity import Claim, Credentials, Home, machine_id, new_claim, new_node_id
from agent.own_signature import OwnSignature
from agent.wire import Registration


class OwnIdentity:
    """The identity in use, kept in a home as far as that can be written. Every change is told in a line."""

    def __init__(
        self,
        home: Home,
        *,
        set_key: str | None = None,
        join_token: str | None = None,
        certified: str | None = None,
        say: Callable[[str], None],
    ) -> None:
        """`set_key`: NODE_API_KEY. It stands over a key that is kept, so that a wrong kept one can be mended.
        `certified`: the id that NODE_CERT names. Either is some operator's word that this is the node."""
        self.home = home
        self.machine_id = machine_id()
        self._set_key, self._join_token, self._certified = set_key, join_token, certified
        self._given = "NODE_API_KEY" if set_key else "NODE_CERT" if certified else None
        self._say = say
        self._node_id: str | None = None
        self._credentials: Credentials | None = None
        self._copied_key: str | None = None
        self._claim = Claim()
        self._approval_claim: str | None = None
        self._trouble: int | None = None
        self._signature = OwnSignature(home, self._cannot_keep)

    @property
    def node_id(self) -> str:
        """This node's id, read or made at first use; one that cannot be kept lasts as long as the agent."""
        if self._node_id is None:
            try:
                self._node_id = self.home.node_id(self._certified)
            except OSError as error:
                self._node_id = self._certified or new_node_id()
                self._cannot_keep(error)
                return self._node_id
            kept = self.home.credentials()
            self._credentials = kept if kept and kept.node_id == self._node_id else None
            if self._credentials and not self._given and not self._credentials.are_of(self.machine_id):
                self._take_new_id(f"this home is a copy of another machine's, which is {self._node_id}")
        return self._node_id

    @property
    def token(self) -> str | None:
        """The newest token."""
        return self._credentials.token if self._credentials else None

    @property
    def key(self) -> str | None:
        """The key to send. A copied one serves to join with, as its node's owner may bring in another machine."""
        own = self._credentials.api_key if self._credentials else None
        return self._set_key or own or self._join_token or self._copied_key

    @property
    def approval_claim(self) -> str:
        """What it shows with each registration: an operator approves the machine that has it. Where it cannot be
        kept it lasts as long as the agent."""
        if self._approval_claim is None:
            try:
                self._approval_claim = self.home.approval_claim()
            except OSError as error:
                self._approval_claim = new_claim()
                self._cannot_keep(error)
        return self._approval_claim

    @property
    def has_no_key(self) -> bool:
        """Whether nothing here could prove that the id is this machine's."""
        return self._credentials is None and self._given is None

    def registered(self, given: Registration) -> None:
        """Keep what a registration gave."""
        self.look_again()
        own = self._credentials.api_key if self._credentials else None
        self._keep(Credentials(given.node_id, given.api_key or own, given.token, self.machine_id))

    def rekeyed(self, api_key: str) -> None:
        """Keep the new key that a registry gave for the one in use."""
        own = self._credentials
        self._keep(Credentials(self.node_id, api_key, own.token if own else None, self.machine_id))

    def heard(self, token: str | None) -> None:
        """Keep the token that a heartbeat's answer brought."""
        own = self._credentials
        if own and token and token != own.token:
            if self.look_again():  # or the key that another program has just kept would be replaced by ours
                own = self._credentials or own
            self._keep(replace(own, token=token))

    def look_again(self) -> bool:
        """Take up another key that was kept for this node meanwhile, as by `dagi-agent rotate-key`; whether there was
        one."""
        own, kept = self._credentials, self.home.credentials()
        if own is None or kept is None or kept.node_id != own.node_id or kept.api_key in (None, own.api_key):
            return False
        self._credentials = replace(own, api_key=kept.api_key)
        return True

    @property
    def way_out(self) -> str:
        """What to do where the registry does not take the key that is sent. The id stays: it is this machine's."""
        own = self._credentials.api_key if self._credentials else None
        if self._set_key or own:
            where = "in place of the present one" if self._set_key else "here"
            return (
                f"this machine stays {self.node_id}; an operator gives it a new key with `dagi-registry keys rotate "
                f"--node {self.node_id}`, to be set as NODE_API_KEY {where}"
            )
        if self._join_token:
            return (
                "an operator makes another join token with `dagi-registry join-token create`; set NODE_JOIN_TOKEN to it"
            )
        return "an operator makes a join token with `dagi-registry join-token create`; set NODE_JOIN_TOKEN to it"

    def is_anothers(self) -> None:
        """A registry said that the id is another node's, and nothing here proves otherwise."""
        self._take_new_id(f"{self.node_id} is another node's")

    def signed(self, report: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
        """A registration's body, signed. `now_ms`: wall clock."""
        return self._signature.signed(report, now_ms)

    def has_other_signer(self) -> bool:
        """A registry said that the id belongs to another signing key than this node's: this one is another node,
        unless a key or certificate was set for just this id. Whether it is one now."""
        if not self._given:
            self._take_new_id(f"{self.node_id} belongs to another signing key than this machine's")
        return not self._given

    def is_replaced(self, now_s: float, interval_s: float) -> None:
        """A registry said that another agent has registered as this node since. The first time this one does so
        too; told again soon, it leaves the id to the other. `now_s`: monotonic."""
        if not self._claim.is_lost(now_s, interval_s):
            return
        kept = self.home.credentials()
        if self._given:
            self._say(
                f"another agent runs as {self.node_id} with the same {self._given}: take it out of one's settings"
            )
        elif kept is not None and kept.token != self.token:  # a new id would be the other's next one, too
            shared = self.home.folder
            self._say(f"another program registers as {self.node_id} from {shared}; it needs a DAGI_HOME of its own")
        else:
            self._take_new_id(f"another machine runs as {self.node_id}, with a copy of this home")

    def _take_new_id(self, why: str) -> None:
        old = self._credentials
        self._copied_key = old.api_key if old else None
        self._node_id, self._credentials, self._claim = new_node_id(), None, Claim()
        self._signature.renew()
        self._say(f"{why}; this machine takes a new id")

    def _keep(self, credentials: Credentials) -> None:
        self._node_id, self._credentials = credentials.node_id, credentials
        try:
            self.home.keep_id(credentials.node_id)
            self.home.keep_credentials(credentials)
            self._trouble = None
        except OSError as error:
            self._cannot_keep(error)

    def _cannot_keep(self, error: OSError) -> None:
        if error.errno == self._trouble:  # said already; not with each registration
            return
        self._trouble = error.errno
        where = f"{error.filename}: " if error.filename else ""
        self._say(
            f"the identity cannot be kept ({where}{error.strerror or error}); this node will be a new one after a "
            "restart unless DAGI_HOME names a folder that can be read and written"
        )
