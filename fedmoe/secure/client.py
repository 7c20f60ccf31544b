"""The client's side of secure sums: it answers each phase of one once, and only what keeps its own vector hidden.

Everything that a client has to remember is in its notebook, which is written before the answer leaves: a client that
is started anew in the middle of a sum goes on, or refuses, as it would have done. Sums have secrets of their own, so
two of them may go on at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fedmoe.errors import FedMoEError
from fedmoe.secure import shamir
from fedmoe.secure.failures import Refusal, RefusalKind
from fedmoe.secure.graph import Ring
from fedmoe.secure.masks import own_mask, pair_mask, promise_of
from fedmoe.secure.messages import (
    Agreement,
    Delivery,
    Invitation,
    Masked,
    Members,
    Revealed,
    Session,
    Shares,
    SignedKeys,
    Survivors,
    Terms,
    Unmasking,
)
from fedmoe.secure.notes import (
    Notebook,
    Notes,
    begun_with,
    members_of,
    noted_keys,
    noted_session,
    noted_terms,
    ring_of,
    sum_of,
    terms_of,
    with_sum,
)
from fedmoe.secure.phases import SMALLEST
from fedmoe.secure.primitives import (
    Signer,
    Words,
    agreed_key,
    in_ring,
    largest,
    opened,
    public_of,
    random_key,
    sealed,
    signed_by,
)

LEAST_CORRUPT = 0.1  # a server could ask for a graph in which one neighbour holds all of a client's secrets


class SecureClient:
    """One client.

    Args:
        signer: signs as the client.
        admitted: client -> the line of its admitted public key, as the client itself knows it.
        notebook: what the client remembers.
        smallest: the fewest clients whose sum the client lets the server know, whatever the server's terms are.
        corrupt: the share of the clients that the terms must at least expect to be in league with the server.
    """

    def __init__(
        self,
        signer: Signer,
        admitted: Mapping[int, str],
        notebook: Notebook,
        smallest: int = SMALLEST,
        corrupt: float = LEAST_CORRUPT,
    ) -> None:
        self._signer = signer
        self._admitted = admitted
        self._notebook = notebook
        self._smallest = max(smallest, SMALLEST)
        self._corrupt = corrupt

    def keys(self, request: Invitation) -> SignedKeys:
        """Phase 1: return new keys for a sum, which the client has not begun before."""
        session, terms = request.session, request.terms
        if terms.minimum < self._smallest:
            reason = f"the sum may be over {terms.minimum} clients, this client asks for {self._smallest}"
            raise Refusal(RefusalKind.COHORT, reason)
        if not terms.corrupt >= self._corrupt:
            reason = f"the terms expect a share of {terms.corrupt:g} of the clients to be in league with the server"
            raise Refusal(RefusalKind.TERMS, f"{reason}, this client expects {self._corrupt:g}")
        notes = self._notebook.read()
        begun = begun_with(notes, session)
        sealing, masking, seed = random_key(), random_key(), random_key()
        unsigned = SignedKeys(self._signer.client, public_of(sealing), public_of(masking), promise_of(seed), b"")
        keys = replace(unsigned, signature=self._signer.sign(unsigned.content(request)))
        secrets = {"sealing": sealing.hex(), "masking": masking.hex(), "seed": seed.hex()}
        about = {"session": noted_session(session), "terms": noted_terms(terms), "keys": noted_keys(keys)}
        noted = {**about, "phase": "keys", **secrets}
        self._notebook.write(with_sum({**notes, "begun": begun}, noted))
        return keys

    def share(self, request: Members) -> Shares:
        """Phase 2: check all the members' keys, and return shares of the own secrets for each neighbour."""
        notes = self._notes(request.session, "keys")
        terms, me = terms_of(notes), self._signer.client
        self._check_members(request, terms, notes["keys"])
        ring = _ring(request, terms)
        _enough(ring, ring.order)
        holders = ring.holders(me)
        threshold, points = ring.plan.threshold, list(holders.values())
        secrets = [int.from_bytes(bytes.fromhex(notes[name])) for name in ("seed", "masking")]
        pairs = list(zip(*(shamir.split(secret, threshold, points) for secret in secrets), strict=True))
        own = dict(zip(holders, pairs, strict=True))
        public = {keys.client: keys.sealing for keys in request.keys}
        answer = {}
        for other in ring.neighbours(me):
            key = self._agreed(notes, public[other], me, other)
            content = b"".join(share.to_bytes(shamir.SHARE_BYTES) for share in own[other])
            answer[other] = sealed(key, content, request.session.about("share", me, other))
        members = [noted_keys(keys) for keys in request.keys]
        self._note({**notes, "phase": "shares", "members": members, "own": str(own[me][0])})
        return Shares(me, answer)

    def ready(self, session: Session) -> None:
        """Raise Refusal if no vector is due: a client asks before it trains."""
        self._notes(session, "shares")

    def mask(self, request: Delivery, vector: Words, bits: int, asked: bytes = b"") -> Masked:
        """Phase 3: keep the neighbours' shares and return the vector under all masks.

        vector: ``[length]`` numbers below ``2**bits``, of ``word_type(bits)``. asked: digest of the question
        that the vector answers; vectors that answer different ones have no sum.
        """
        notes = self._notes(request.session, "shares")
        if not in_ring(vector, bits):
            raise Refusal(RefusalKind.VECTOR, f"the vector is not one of numbers below 2**{bits}")
        ring, me = _ring(members_of(notes), terms_of(notes)), self._signer.client
        sharing = _distinct(ring, request.sharing)
        if me not in sharing:
            raise Refusal(RefusalKind.GRAPH, f"client {me} has shared its secrets and is not among those who have")
        _enough(ring, sharing)
        near = [other for other in ring.neighbours(me) if other in sharing]
        if set(request.sealed) != set(near):
            wrong = ", ".join(map(str, sorted(set(request.sealed) ^ set(near))))
            raise Refusal(RefusalKind.GRAPH, f"client {wrong}: shares and the graph of this round's keys do not agree")
        seed, masking = bytes.fromhex(notes["seed"]), bytes.fromhex(notes["masking"])
        public = {keys.client: keys for keys in members_of(notes).keys}
        held, total = {}, vector + own_mask(seed, request.session, len(vector), bits)
        for other in near:
            key = self._agreed(notes, public[other].sealing, other, me)
            held[str(other)] = [str(share) for share in _opened(key, request, other, me)]
            try:
                pair = masking, public[other].masking
                total = total + pair_mask(*pair, request.session, me, other, len(vector), bits, asked)
            except ValueError as error:
                raise Refusal(RefusalKind.SHARES, f"client {other}: its masking key is none ({error})") from error
        notes = {**notes, "phase": "masked", "sharing": sorted(sharing), "held": held, "asked": asked.hex()}
        self._note(notes)
        everyone = Survivors(request.session, tuple(notes["sharing"]))
        signature = self._signer.sign(_agreed_content(everyone, notes)) if ring.complete else b""
        return Masked(me, total & largest(bits), signature)

    def agree(self, request: Survivors) -> Agreement:
        """Phase 4: sign whose vectors are summed; no other list is ever signed for this sum."""
        notes = self._notes(request.session, "masked")
        ring, me = _ring(members_of(notes), terms_of(notes)), self._signer.client
        survivors = _distinct(ring, request.survivors)
        if me not in survivors or not survivors <= set(notes["sharing"]):
            raise Refusal(RefusalKind.SURVIVORS, "the sum is over clients that have shared, this one among them")
        _enough(ring, survivors)
        self._note({**notes, "phase": "agreed", "survivors": sorted(survivors)})
        return Agreement(me, self._signer.sign(_agreed_content(request, notes)))

    def unmask(self, request: Unmasking) -> Revealed:
        """Phase 5: give one share of each neighbour, if the cohort has agreed on the survivors; once a sum.

        Who has signed no list has agreed, with its vector, to the sum of all who have shared. In a complete graph no
        two sets of clients can each put a secret together: a server that has some unmask the one gets at most one sum.
        """
        notes = self._notes(request.session, "agreed", "masked")
        me = self._signer.client
        if notes["phase"] == "masked":
            if not _ring(members_of(notes), terms_of(notes)).complete:
                raise Refusal(RefusalKind.OUT_OF_TURN, "in a sparse graph survivors are agreed on before the unmasking")
            notes["survivors"] = notes["sharing"]
        both = set(request.survivors) & set(request.dropped)
        if both:
            listed = ", ".join(map(str, sorted(both)))
            raise Refusal(RefusalKind.BOTH_KINDS, f"client {listed}: both kinds of share are asked for")
        agreed, sharing = set(notes["survivors"]), set(notes["sharing"])
        if set(request.survivors) != agreed or set(request.dropped) != sharing - agreed:
            raise Refusal(RefusalKind.SURVIVORS, "the unmasking is for others than this client has agreed to")
        self._check_quorum(request, notes)
        near = set(map(int, notes["held"]))
        seeds = {other: int(notes["held"][str(other)][0]) for other in near & agreed}
        keys = {other: int(notes["held"][str(other)][1]) for other in near - agreed}
        self._note({"session": notes["session"], "phase": "unmasked"})
        return Revealed(me, {**seeds, me: int(notes["own"])}, keys)

    def _notes(self, session: Session, *phases: str) -> Notes:
        """Return the notes of a sum if the client is in it, and the phase's turn has come."""
        notes = sum_of(self._notebook.read(), session)
        if notes is None:
            raise Refusal(RefusalKind.OUT_OF_TURN, f"{session}: this client is not in it")
        if notes["phase"] == "unmasked":
            raise Refusal(RefusalKind.UNMASKED, f"{session}: already unmasked")
        if notes["phase"] not in phases:
            reason = f"{session}: the client's last answer was '{notes['phase']}', which this phase does not follow"
            raise Refusal(RefusalKind.OUT_OF_TURN, reason)
        return notes

    def _note(self, noted: Notes) -> None:
        self._notebook.write(with_sum(self._notebook.read(), noted))

    def _check_members(self, request: Members, terms: Terms, own: list[str | int]) -> None:
        clients = [keys.client for keys in request.keys]
        if len(set(clients)) < len(clients):
            raise Refusal(RefusalKind.GRAPH, "a client is a member twice")
        if own not in [noted_keys(keys) for keys in request.keys]:
            raise Refusal(RefusalKind.OWN_KEYS, "this client's keys are not among the members' as it sent them")
        invitation = Invitation(request.session, terms)
        for keys in request.keys:
            line = self._admitted.get(keys.client)
            if line is None:
                raise Refusal(RefusalKind.NOT_ADMITTED, f"client {keys.client} has no admitted key")
            if not signed_by(line, keys.signature, keys.content(invitation)):
                reason = f"client {keys.client}: its keys are not signed with its admitted key for this sum"
                raise Refusal(RefusalKind.SIGNATURE, reason)

    def _check_quorum(self, request: Unmasking, notes: Notes) -> None:
        ring = _ring(members_of(notes), terms_of(notes))
        content = _agreed_content(Survivors(request.session, request.survivors), notes)
        for client, signature in request.signatures.items():
            line = self._admitted.get(client) if client in notes["survivors"] else None
            if line is None or not signed_by(line, signature, content):
                reason = f"client {client}: it has not agreed to these survivors, or was asked something else"
                raise Refusal(RefusalKind.SIGNATURE, reason)
        if len(request.signatures) < ring.plan.quorum:
            reason = f"{len(request.signatures)} clients agree on the survivors, {ring.plan.quorum} are needed"
            raise Refusal(RefusalKind.SURVIVORS, reason)

    def _agreed(self, notes: Notes, public: bytes, sender: int, receiver: int) -> bytes:
        """Return the key under which shares travel from one client to another, of which this one is either."""
        about = Session(*notes["session"]).about("share", sender, receiver)
        try:
            return agreed_key(bytes.fromhex(notes["sealing"]), public, about)
        except ValueError as error:
            other = sender if receiver == self._signer.client else receiver
            raise Refusal(RefusalKind.SHARES, f"client {other}: its sealing key is none ({error})") from error


def _agreed_content(request: Survivors, notes: Notes) -> bytes:
    """Return what clients sign when they agree on the survivors."""
    transcript = members_of(notes).digest(terms_of(notes))
    return request.content(transcript, notes["sharing"], bytes.fromhex(notes["asked"]))


def _opened(key: bytes, request: Delivery, sender: int, receiver: int) -> list[int]:
    """Return a neighbour's shares of its seed and of its masking key."""
    try:
        content = opened(key, request.sealed[sender], request.session.about("share", sender, receiver))
    except ValueError as error:
        reason = f"client {sender}: its shares are damaged, or were not meant for client {receiver} and this sum"
        raise Refusal(RefusalKind.SHARES, reason) from error
    size = shamir.SHARE_BYTES
    if len(content) != 2 * size:
        raise Refusal(RefusalKind.SHARES, f"client {sender}: its shares are {len(content)} bytes, not {2 * size}")
    return [int.from_bytes(content[:size]), int.from_bytes(content[size:])]


def _ring(members: Members, terms: Terms) -> Ring:
    """Return the round's graph; terms that cannot be kept with so many members are refused."""
    try:
        return ring_of(members, terms)
    except FedMoEError as error:
        raise Refusal(RefusalKind.COHORT, str(error)) from error


def _distinct(ring: Ring, clients: Collection[int]) -> set[int]:
    """Return a list of members as a set."""
    found = set(clients)
    if len(found) < len(clients) or not found <= set(ring.order):
        raise Refusal(RefusalKind.SURVIVORS, "a list names a client twice, or one that is no member")
    return found


def _enough(ring: Ring, left: Collection[int]) -> None:
    shortfall = ring.shortfall(left)
    if shortfall is not None:
        raise Refusal(RefusalKind.COHORT, shortfall)
