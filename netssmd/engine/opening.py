"""From a model folder to sessions and backends: where codec, model and address plan meet.

In: a checkpoint folder, who asks for what. Out: an `OpenModel` that makes sessions (pure) and backends (one for each
engine thread). Unknown labels and fields raise UsageError with near matches.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from netssmd.codec.byte_vocab import ByteVocabulary
from netssmd.codec.bytes import ByteDecoder, ByteEncoder, from_text
from netssmd.codec.context import IdentitySource
from netssmd.codec.decoder import Decoder, Recorded
from netssmd.codec.encoder import Encoder
from netssmd.codec.kinds import KINDS
from netssmd.codec.timing import FittedGaps, Gaps, RecordedGaps, SampledGaps
from netssmd.codec.vocab import Repertoire, Vocabulary
from netssmd.engine.byte_options import NO_OPTIONS, ByteOptions
from netssmd.engine.guide import Guide
from netssmd.engine.identities import FreshIdentities
from netssmd.engine.mix import draw_extent, shared_out
from netssmd.engine.plan import AddressPlan
from netssmd.engine.repetition import Repetition
from netssmd.engine.sampling import Stream, derive
from netssmd.engine.scheduler import Backend
from netssmd.engine.session import NO_LIMITS, Limits, Session, SessionInfo, Temperatures
from netssmd.errors import CheckpointError, UsageError
from netssmd.model.backend import Kind, Sampling, Weights, open_backend
from netssmd.model.checkpoint import folder_of, load_config_and_codec, model_hash
from netssmd.model.conduct import CONDUCT, NO_CONDUCT, Conduct, load_conduct
from netssmd.packet.mark import render_marked
from netssmd.packet.payload import PayloadWriter
from netssmd.packet.pcap import Packet
from netssmd.packet.render import render
from netssmd.packet.wire import Headers

MAX_FLOWS = 1024  # contexts that a served session keeps; a prompt is encoded under the same cap, so that its ranks hold
MTU = 1500  # bytes of a fresh packet from its IP header on


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of a real capture, encoded: `tokens` without END, and what is needed to keep its hosts, or (byte
    codec, which has no token for them) its gaps."""

    tokens: Sequence[int]
    identities: Sequence[object]
    start_ns: int
    packets: int
    gaps_ns: Sequence[int] = ()
    flows: int = 0


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A checkpoint ready to serve."""

    folder: Path
    name: str
    hash: str  # of weights and config
    vocabulary: Vocabulary | ByteVocabulary
    kind: Kind
    sampling: Sampling
    weights: Weights = "auto"
    options: ByteOptions = NO_OPTIONS
    conduct: Conduct = NO_CONDUCT

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

    def check_extent(self, labels: Iterable[str]) -> None:
        """Raises UsageError if a session of one of these labels cannot be ordered by its number of packets."""
        if isinstance(self.vocabulary, ByteVocabulary):
            raise UsageError(
                f"{self.name}: a model of the byte codec is not told how long a session is to be; leave extent out, or "
                "cut sessions by packets"
            )
        for label in labels:
            known = shared_out(self.conduct.extents.get(label, ()))
            if not known or not self.vocabulary.tells_extents(label):
                raise UsageError(
                    f"{self.name} has no session of {label!r} to tell how packets are shared out among flows; leave "
                    "extent out, or cut sessions by packets"
                )

    def temperatures(self, default: float, by_field: Mapping[str, float]) -> Temperatures:
        """Made ready for sampling: the model's own by field, times `default`; those of `by_field` in their place."""
        by_lo = {}
        own = {name: value * default for name, value in self.conduct.temperatures.items()}
        for name, value in {**own, **by_field}.items():
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
        plan = plan.for_label(info.label)
        fresh = FreshIdentities(plan, info.number, Stream(derive(info.seed, "identities")))
        if isinstance(vocabulary, ByteVocabulary):
            return self._byte_session(
                vocabulary, info, fresh, limits, temperatures, snaplen, prompt, keep_hosts, payload
            )
        source: IdentitySource = fresh
        if prompt is not None and keep_hosts:
            source = Recorded(list(prompt.identities), fresh)
        habits = self.conduct.habits(info.label, tells_extents=vocabulary.tells_extents(info.label))
        prompted = (prompt.packets, prompt.flows) if prompt else (0, 0)
        measure = draw_extent(info, self.conduct.extents, prompted, habits.shortest)
        fixed = [vocabulary.label_row(info.label), *vocabulary.condition_rows(info.conditions)]
        return Session(
            info,
            Decoder(
                vocabulary,
                source,
                mtu=MTU,
                max_flows=MAX_FLOWS,
                extent=measure.extent,
                habits=habits,
                owed=measure.owed,
            ),
            Stream(derive(info.seed, "tokens")),
            fixed,
            vocabulary.end,
            _rendering(plan, snaplen),
            limits,
            temperatures,
            prompt.tokens if prompt else (),
            fresh,
            PayloadWriter(payload, Stream(derive(info.seed, "payload")), KINDS, fresh),
        )

    def guide(self, label: str) -> Guide:
        """What keeps a session of this label to the rules."""
        return Guide(self.conduct.may_reset(label))

    def _byte_session(
        self,
        vocabulary: ByteVocabulary,
        info: SessionInfo,
        fresh: FreshIdentities,
        limits: Limits,
        temperatures: Temperatures | None,
        snaplen: int,
        prompt: Prompt | None,
        keep_hosts: bool,
        payload: str,
    ) -> Session:
        """A session of the byte codec: addresses of the plan in place of the generated ones, unless they are kept."""
        options = self.options
        stream = Stream(derive(info.seed, "timing"))
        gaps: Gaps = FittedGaps(vocabulary.timing, info.label, stream)
        if vocabulary.timing.sampled_ns:
            gaps = SampledGaps(vocabulary.timing, stream)
        if prompt is not None and prompt.gaps_ns:
            gaps = RecordedGaps(prompt.gaps_ns, gaps)
        raw = options.raw
        decoder = ByteDecoder(
            vocabulary, gaps, None if keep_hosts or raw else fresh, 0 if raw else MTU, payload == "zero", raw, MAX_FLOWS
        )
        penalized = options.penalty != 1.0
        return Session(
            info,
            decoder,
            Stream(derive(info.seed, "tokens")),
            vocabulary.told_rows(info.label, info.conditions),
            vocabulary.begin(info.label),
            decoder.as_generated if raw else _rendering(fresh.plan, snaplen),
            limits,
            temperatures,
            prompt.tokens if prompt else (),
            fresh,
            None if raw else PayloadWriter(payload, Stream(derive(info.seed, "payload")), KINDS, fresh),
            Repetition(vocabulary.size, options.penalty, options.window) if penalized else None,
        )

    def text_prompt(self, text: str, partial: bool, label: str) -> Prompt:
        """A prompt in the paper's string form (section 4.3). partial: its last packet may lack bytes. Raises
        UsageError."""
        if not isinstance(self.vocabulary, ByteVocabulary):
            raise UsageError(f"{self.name}: a model of the context codec; the string form is the byte codec's")
        try:
            told, tokens = from_text(self.vocabulary, text, partial)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if told is not None and told != label:
            raise UsageError(f"its label is {told}, but {label} was asked for")
        return Prompt(tokens, (), 0, tokens.count(self.vocabulary.pkt))

    def encode_prompt(self, packets: Iterable[Packet]) -> Prompt:
        """Tokens of a capture's first packets (`packets` holds no more than wanted)."""
        if isinstance(self.vocabulary, ByteVocabulary):
            byte_encoder = ByteEncoder(self.vocabulary)
            for packet in packets:
                byte_encoder.packet(packet.ts_ns, packet.data, packet.orig_len)
            tokens = [*byte_encoder.tokens, self.vocabulary.pkt] if byte_encoder.packets else []
            return Prompt(tokens, (), byte_encoder.start_ns, byte_encoder.packets, byte_encoder.gaps_ns)
        encoder = Encoder(self.vocabulary, max_flows=MAX_FLOWS)
        for packet in packets:
            encoder.packet(packet.ts_ns, packet.data, packet.orig_len)
        encoded = encoder.encoded
        return Prompt(
            list(encoded.tokens), encoded.identities, encoded.start_ns, encoded.packets, flows=len(encoded.flow_packets)
        )


def _rendering(plan: AddressPlan, snaplen: int) -> Callable[[Headers], tuple[bytes, int]]:
    rendering = render_marked if plan.mark == "reserved-bit" else render
    return partial(rendering, snaplen=snaplen) if snaplen else rendering


def open_model(
    name: str = "embedded",
    kind: Kind = "auto",
    top_k: int = 0,
    top_p: float = 1.0,
    weights: Weights = "auto",
    options: ByteOptions = NO_OPTIONS,
) -> OpenModel:
    """Read a checkpoint's configuration. `name`: "embedded" or a folder. `options`: refused for a model of another
    codec. Raises CheckpointError, UsageError."""
    folder = folder_of(name)
    if not folder.is_dir():
        what = "this installation has no embedded model" if name == "embedded" else "no such folder"
        raise CheckpointError(f"{folder}: {what}; give the folder of a model made by `netssmd train`")
    _, codec = load_config_and_codec(folder)
    vocabulary: Vocabulary | ByteVocabulary
    try:
        vocabulary = ByteVocabulary.from_json(codec) if codec["name"] == "bytes" else Vocabulary.from_json(codec)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: codec: {error}") from None
    if options != NO_OPTIONS and not isinstance(vocabulary, ByteVocabulary):
        raise UsageError(
            f"{name}: a model of the context codec, which has its own timing; timing captures, repetition penalties "
            "(the paper's sampling has one) and raw bytes are for models of the byte codec"
        )
    services = [] if isinstance(vocabulary, ByteVocabulary) else vocabulary.service_names()
    sampling = Sampling(top_k=top_k, top_p=top_p, penalties=options.penalty != 1.0)
    conduct = load_conduct(folder, vocabulary.size, services)
    if isinstance(vocabulary, ByteVocabulary):
        if conduct.temperatures:
            raise CheckpointError(f"{folder / CONDUCT}: temperatures are for the context codec's models; take them out")
        vocabulary.timing.sampled_ns = options.gaps_ns
    else:
        vocabulary.repertoires = {
            label: _repertoire(conduct, label, vocabulary.size)
            for label in vocabulary.labels
            if label in conduct.tokens
        }
    return OpenModel(folder, name, model_hash(folder), vocabulary, kind, sampling, weights, options, conduct)


def _repertoire(conduct: Conduct, label: str, size: int) -> Repertoire:
    repertoire = Repertoire(size, conduct.tokens[label])
    for stage in conduct.weights.get(label, ()):
        repertoire.add_stage(stage)
    weights = conduct.flow_weights.get(label, {})
    for service, sides in conduct.flow_tokens.get(label, {}).items():
        for direction, runs in enumerate(sides):
            repertoire.add_flow(service, direction, runs, weights[service][direction] if service in weights else ())
    return repertoire


def nearest(name: str, known: Sequence[str], what: str) -> str:
    """The remedy for a name that is not known: near matches, then all there are."""
    near = difflib.get_close_matches(name, known, 3, 0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{guess}{what} {', '.join(known)}"
