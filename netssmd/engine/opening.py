"""From a model folder to sessions and backends: where codec, model and address plan meet.

In: a checkpoint folder, who asks for what. Out: an `OpenModel` that makes sessions (pure) and backends (one for each
engine thread). Unknown labels and fields raise UsageError with near matches.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from netssmd.codec.context import IdentitySource
from netssmd.codec.decoder import Decoder, Recorded
from netssmd.codec.encoder import Encoder
from netssmd.codec.kinds import KINDS
from netssmd.codec.vocab import Vocabulary
from netssmd.engine.identities import FreshIdentities
from netssmd.engine.plan import AddressPlan
from netssmd.engine.sampling import Stream, derive
from netssmd.engine.scheduler import Backend
from netssmd.engine.session import NO_LIMITS, Limits, Session, SessionInfo, Temperatures
from netssmd.errors import CheckpointError, UsageError
from netssmd.model.backend import Kind, Sampling, Weights, open_backend
from netssmd.model.checkpoint import embedded_model_path, load_config_and_codec, model_hash
from netssmd.packet.payload import PayloadWriter
from netssmd.packet.pcap import Packet
from netssmd.packet.render import render

MAX_FLOWS = 1024  # contexts that a served session keeps; a prompt is encoded under the same cap, so that its ranks hold
MTU = 1500  # bytes of a fresh packet from its IP header on


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of a real capture, encoded: `tokens` without END, and what is needed to keep its hosts."""

    tokens: Sequence[int]
    identities: Sequence[object]
    start_ns: int
    packets: int


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A checkpoint ready to serve."""

    folder: Path
    name: str
    hash: str  # of weights and config
    vocabulary: Vocabulary
    kind: Kind
    sampling: Sampling
    weights: Weights = "auto"

    @property
    def labels(self) -> tuple[str, ...]:
        """What it can be asked for."""
        return self.vocabulary.labels

    def backend(self, slots: int) -> Backend:
        """A backend with state for `slots` sessions."""
        return open_backend(self.folder, self.kind, slots, self.sampling, self.weights)

    def check_labels(self, names: Iterable[str]) -> None:
        """Raises UsageError for the first label that the model does not know."""
        for name in names:
            if name not in self.labels:
                raise UsageError(
                    f"unknown label {name!r}: {nearest(name, self.labels, 'the labels of this model are')}"
                )

    def temperatures(self, default: float, by_field: Mapping[str, float]) -> Temperatures:
        """Temperatures by field name, made ready for sampling."""
        by_lo = {}
        for name, value in by_field.items():
            found = next((f for f in self.vocabulary.fields if f.name == name), None)
            if found is None:
                fields = [f.name for f in self.vocabulary.fields]
                raise UsageError(f"unknown field {name!r} for a temperature: {nearest(name, fields, 'the fields are')}")
            by_lo[found.lo] = value
        return Temperatures(default, by_lo)

    def session(
        self,
        info: SessionInfo,
        plan: AddressPlan,
        limits: Limits = NO_LIMITS,
        temperatures: Temperatures | None = None,
        snaplen: int = 0,
        prompt: Prompt | None = None,
        keep_hosts: bool = False,
        payload: str = "protocol",
    ) -> Session:
        """A session at its beginning. keep_hosts: the prompt's hosts stay who they are; otherwise the plan gives them
        new identities."""
        vocabulary = self.vocabulary
        fresh = FreshIdentities(plan.for_label(info.label), info.number, Stream(derive(info.seed, "identities")))
        source: IdentitySource = fresh
        if prompt is not None and keep_hosts:
            source = Recorded(list(prompt.identities), fresh)
        fixed = [vocabulary.label_row(info.label), *vocabulary.condition_rows(info.conditions)]
        return Session(
            info,
            Decoder(vocabulary, source, mtu=MTU, max_flows=MAX_FLOWS),
            Stream(derive(info.seed, "tokens")),
            fixed,
            vocabulary.end,
            partial(render, snaplen=snaplen) if snaplen else render,
            limits,
            temperatures,
            prompt.tokens if prompt else (),
            fresh,
            PayloadWriter(payload, Stream(derive(info.seed, "payload")), KINDS, fresh),
        )

    def encode_prompt(self, packets: Iterable[Packet]) -> Prompt:
        """Tokens of a capture's first packets (`packets` holds no more than wanted)."""
        encoder = Encoder(self.vocabulary, max_flows=MAX_FLOWS)
        for packet in packets:
            encoder.packet(packet.ts_ns, packet.data, packet.orig_len)
        encoded = encoder.encoded
        return Prompt(list(encoded.tokens), encoded.identities, encoded.start_ns, encoded.packets)


def open_model(
    name: str = "embedded", kind: Kind = "auto", top_k: int = 0, top_p: float = 1.0, weights: Weights = "auto"
) -> OpenModel:
    """Read a checkpoint's configuration. `name`: "embedded" or a folder. Raises CheckpointError."""
    folder = Path(embedded_model_path()) if name == "embedded" else Path(name)
    if not folder.is_dir():
        what = "this installation has no embedded model" if name == "embedded" else "no such folder"
        raise CheckpointError(f"{folder}: {what}; give the folder of a model made by `netssmd train`")
    _, codec = load_config_and_codec(folder)
    try:
        vocabulary = Vocabulary.from_json(codec)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: codec: {error}") from None
    return OpenModel(folder, name, model_hash(folder), vocabulary, kind, Sampling(top_k=top_k, top_p=top_p), weights)


def nearest(name: str, known: Sequence[str], what: str) -> str:
    """The remedy for a name that is not known: near matches, then all there are."""
    near = difflib.get_close_matches(name, known, 3, 0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{guess}{what} {', '.join(known)}"
