"""The byte codec's vocabulary: which token stands for which byte, and Hugging Face tokenizers that say so.

In the paper (section 4.1.1) a byte's value is its token, and beside the 256 bytes there are a delimiter, labels and
what Hugging Face wants. A vocabulary made here has them in this order, so that what may come next is always one range::

    0 .. 255     256             257       258       259           260 ..
    bytes        <|endoftext|>   <|pkt|>   <|unk|>   <|padding|>   <|label|> ..
    |- inside -| |- behind a packet -|                            never drawn

A published tokenizer may have them in any order, so a vocabulary is built from the names of its tokens by id, and
`byte_of` says what each means. `names_of_tokenizer` reads those names out of a `tokenizer.json`, of either kind that
the authors use: WordLevel (byte b is id b, added tokens behind), or BPE over decimal strings, whose ids are in the
order in which pairs were merged. Ids without a name (weights are padded to a multiple of 8 or 16) get one that means
nothing.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from netssmd.codec.timing import Timing
from netssmd.codec.vocab import Condition, Field, condition_rows, conditions_from

FORMAT: Final = 1

END_NAME: Final = "<|endoftext|>"
PKT_NAME: Final = "<|pkt|>"
UNK_NAME: Final = "<|unk|>"
PAD_NAME: Final = "<|padding|>"
RESERVED: Final = (END_NAME, PKT_NAME, UNK_NAME, PAD_NAME)

# What a token means, beside the bytes 0..255.
PKT: Final = 256
END: Final = 257
NOTHING: Final = 258


class Layout(NamedTuple):
    """What is kept of a packet: everything up to the transport header, options too, then the first `udp_payload` bytes
    behind a UDP header, then zeros up to `packet_bytes`. TCP payload is never kept (section 5.1)."""

    packet_bytes: int
    udp_payload: int
    versions: tuple[int, ...]
    protocols: tuple[str, ...]  # unless told otherwise


# 94 = Ethernet 14 + IPv4 20 + TCP 60 (section 5.1); 106 = and 12 of a DNS header (section 5.3); 128 = Ethernet 14 +
# IPv6 40 + TCP 60 + 12, and 2 for a round number (the authors' published code).
LAYOUTS: Final[dict[int, Layout]] = {
    94: Layout(94, 0, (4,), ("tcp",)),
    106: Layout(106, 12, (4,), ("tcp", "udp")),
    128: Layout(128, 12, (4, 6), ("tcp", "udp")),
}
PROTOCOLS: Final = {"tcp": 6, "udp": 17}


class ByteVocabulary:
    """All tokens and rows of a byte model.

    Arguments:
        names: of the tokens, by id. labels: those of them that are labels, without `<|` and `|>`.
        packet_bytes: a row of `LAYOUTS`. protocols: of `PROTOCOLS`; none given: the layout's own.
        framed: tokens are drawn from the range that the place in a packet allows, and learnt so; else any token
            anywhere, as in the paper. Needs the order of ids above.
        conditioned: label and conditions are added to every input as well, by embedding rows behind the tokens.
        timing: gaps between packets, which have no token here.

    Attributes: see codec.vocab.Vocabulary for `fields size rows width end labels conditions`; byte_of: what each token
    means. Raises ValueError for names that are no byte vocabulary.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        labels: tuple[str, ...],
        packet_bytes: int,
        protocols: tuple[str, ...] = (),
        framed: bool = True,
        conditioned: bool = False,
        timing: Timing | None = None,
    ) -> None:
        if packet_bytes not in LAYOUTS:
            raise ValueError(f"packets of {packet_bytes} bytes; there are {', '.join(map(str, LAYOUTS))}")
        self.layout: Layout = LAYOUTS[packet_bytes]
        self.protocols: tuple[str, ...] = protocols or self.layout.protocols
        for name in self.protocols:
            if name not in PROTOCOLS:
                raise ValueError(f"protocol {name!r}; there are {', '.join(PROTOCOLS)}")
        self.names: tuple[str, ...] = names
        self.labels: tuple[str, ...] = labels
        self.framed: bool = framed
        self.conditioned: bool = conditioned
        self.timing: Timing = timing or Timing()
        ids: dict[str, int] = {name: i for i, name in enumerate(names)}
        if len(ids) < len(names):
            raise ValueError("two tokens have the same name")
        missing = [str(b) for b in range(256) if str(b) not in ids]
        if missing:
            raise ValueError(f"no token for byte {', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}")
        for name in (END_NAME, PKT_NAME, *[f"<|{label}|>" for label in labels]):
            if name not in ids:
                raise ValueError(f"no token {name}")
        self.byte_ids: list[int] = [ids[str(b)] for b in range(256)]
        self.end: int = ids[END_NAME]
        self.pkt: int = ids[PKT_NAME]
        self.unk: int = ids.get(UNK_NAME, -1)
        self.label_ids: list[int] = [ids[f"<|{label}|>"] for label in labels]
        self.size: int = len(names)
        self.byte_of: list[int] = [NOTHING] * self.size
        for value, token in enumerate(self.byte_ids):
            self.byte_of[token] = value
        self.byte_of[self.pkt] = PKT
        self.byte_of[self.end] = END
        if framed and (self.byte_ids != list(range(256)) or self.end != 256 or self.pkt != 257):
            raise ValueError("framed needs byte b at id b, <|endoftext|> at 256 and <|pkt|> at 257")
        if framed:
            rest = self.size - 258
            self.fields: tuple[Field, ...] = (
                Field("byte", 0, 256, 0),
                Field("boundary", 256, 2, 0),
                Field("special", 258, rest, rest),
            )
        else:
            self.fields = (Field("token", 0, self.size, 0),)
        lo = self.size
        self.label_base: int = lo
        self.conditions: tuple[Condition, ...] = ()
        if conditioned:
            self.conditions = conditions_from(lo + len(labels) + 1)
            lo = self.conditions[-1].unknown_row + 1
        self.rows: int = lo
        self.width: int = 2 + len(self.conditions) if conditioned else 1
        self.left_base: list[int] = []  # it has no features, and so none that say what is left of a session

    def range_behind(self, known: int) -> tuple[int, int]:
        """`lo, hi` of what may be drawn behind so many bytes of a packet: framed, the next byte, or behind a whole
        packet its delimiter or the end."""
        if not self.framed:
            return 0, self.size
        return (0, 256) if known < self.layout.packet_bytes else (256, 258)

    @staticmethod
    def make(
        labels: tuple[str, ...],
        packet_bytes: int,
        protocols: tuple[str, ...] = (),
        framed: bool = True,
        conditioned: bool = False,
        timing: Timing | None = None,
    ) -> ByteVocabulary:
        """The vocabulary in the order drawn above."""
        names = [str(b) for b in range(256)] + list(RESERVED) + [f"<|{label}|>" for label in labels]
        return ByteVocabulary(tuple(names), labels, packet_bytes, protocols, framed, conditioned, timing)

    def same_language(self, other: ByteVocabulary) -> bool:
        """Tokens, layout and rows mean the same in both; what they know of timing may differ."""
        mine, theirs = self.to_json(), other.to_json()
        return all(mine[key] == theirs[key] for key in mine if key != "timing")

    def begin(self, label: str | None) -> int:
        """The token before a session's first byte: its label's. Raises KeyError for a label that is not known."""
        if label is None:
            return self.unk if self.unk >= 0 else self.end
        try:
            return self.label_ids[self.labels.index(label)]
        except ValueError:
            raise KeyError(label) from None

    def told_rows(self, label: str | None, conditions: dict[str, float] | None) -> list[int]:
        """Embedding rows of label and conditions that are added to every input; none if the model is not
        conditioned."""
        if not self.conditioned:
            return []
        at = len(self.labels) if label is None else self.labels.index(label)
        return [self.label_base + at, *condition_rows(self.conditions, conditions)]

    def label_row(self, label: str | None) -> int:
        """The embedding row that tells a label: added to every input if the model is conditioned, else the token before
        the first byte. Raises KeyError for a label that is not known."""
        return self.told_rows(label, None)[0] if self.conditioned else self.begin(label)

    def condition_rows(self, values: dict[str, float] | None) -> list[int]:
        """Embedding rows of the conditions; none if the model is not conditioned."""
        return condition_rows(self.conditions, values) if self.conditioned else []

    def token_names(self) -> list[str]:
        """The name of every token, by id."""
        return list(self.names)

    def drawable(self) -> list[bool]:
        """For each token: does it mean a byte or the end of a packet? `<|endoftext|>` is none: the authors' models
        never learn it."""
        return [meaning <= PKT for meaning in self.byte_of]

    def to_json(self) -> dict[str, Any]:
        """Everything from which `from_json` makes the same vocabulary again."""
        return {
            "name": "bytes",
            "format": FORMAT,
            "packet_bytes": self.layout.packet_bytes,
            "protocols": list(self.protocols),
            "framed": self.framed,
            "conditioned": self.conditioned,
            "labels": list(self.labels),
            "tokens": list(self.names),
            "size": self.size,
            "rows": self.rows,
            "timing": self.timing.to_json(),
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> ByteVocabulary:
        """Make a vocabulary from `to_json`'s result. Raises ValueError if it was made for another codec or format."""
        if value.get("name") != "bytes" or value.get("format") != FORMAT:
            raise ValueError(
                f"codec {value.get('name')!r} format {value.get('format')!r}, expected 'bytes' format {FORMAT}"
            )
        try:
            vocabulary = ByteVocabulary(
                tuple([str(name) for name in value["tokens"]]),
                tuple([str(label) for label in value["labels"]]),
                int(value["packet_bytes"]),
                tuple([str(name) for name in value["protocols"]]),
                bool(value["framed"]),
                bool(value["conditioned"]),
                Timing.from_json(value.get("timing", {})),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"the codec's section is damaged: {error!r}") from None
        if value.get("size") != vocabulary.size or value.get("rows") != vocabulary.rows:
            raise ValueError(
                f"{value.get('size')} tokens and {value.get('rows')} rows, "
                f"expected {vocabulary.size} and {vocabulary.rows}"
            )
        return vocabulary


# ---- Hugging Face tokenizers ---------------------------------------------------------------------------------------


def names_of_tokenizer(document: dict[str, Any], size: int) -> list[str]:
    """The names of `size` tokens by id, out of a `tokenizer.json`'s content.

    Raises ValueError for a kind that is not read, ids that are given twice or lie beyond `size`, and bytes that are no
    token of their own.
    """
    model = document.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in ("WordLevel", "BPE"):
        raise ValueError(f"model.type is {kind!r}; WordLevel and BPE are read")
    entries: list[tuple[str, int]] = []
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise ValueError("has no model.vocab")
    for name, number in vocab.items():
        entries.append((str(name), _id_of(name, number)))
    for added in _list_of(document, "added_tokens"):
        if not isinstance(added, dict) or "content" not in added:
            raise ValueError("added_tokens holds something that is no token")
        entries.append((str(added["content"]), _id_of(added["content"], added.get("id"))))
    names: list[str] = [""] * size
    for name, number in entries:
        if number >= size:
            raise ValueError(f"token {name!r} has id {number}, but the weights have {size} rows")
        if names[number] and names[number] != name:
            raise ValueError(f"id {number} is both {names[number]!r} and {name!r}")
        names[number] = name
    if kind == "BPE":
        _check_merges(model, dict(entries))
    return [name or f"<|none-{i}|>" for i, name in enumerate(names)]


def labels_of(names: list[str]) -> tuple[str, ...]:
    """The labels among the names: every `<|...|>` that is nothing else."""
    return tuple(
        [
            name[2:-2]
            for name in names
            if name.startswith("<|") and name.endswith("|>") and name not in RESERVED and not name.startswith("<|none-")
        ]
    )


def _list_of(document: dict[str, Any], key: str) -> list[Any]:
    """A list that may be missing or null."""
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list")
    return value


def _id_of(name: object, number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"token {name!r} has id {number!r}; it must be a whole number from 0")
    return number


def _check_merges(model: dict[str, Any], ids: dict[str, int]) -> None:
    """A byte's decimal string has to end up as one token, or the model has met it as several."""
    ranks: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(_list_of(model, "merges")):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or not all(isinstance(piece, str) for piece in pair):
            raise ValueError("model.merges holds something that is no pair")
        if len(pair) == 2:
            ranks[pair[0], pair[1]] = rank
    for value in range(256):
        pieces = bpe(str(value), ranks)
        if len(pieces) > 1 and str(value) in ids:
            raise ValueError(f"byte {value} is written as {len(pieces)} tokens ({' '.join(pieces)})")


def bpe(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The pieces of a word by byte-pair encoding: the neighbours of the lowest rank are joined until none are left
    (Sennrich et al., 2016)."""
    pieces = list(word)
    while len(pieces) > 1:
        best, at = len(ranks), -1
        for i in range(len(pieces) - 1):
            rank = ranks.get((pieces[i], pieces[i + 1]), len(ranks))
            if rank < best:
                best, at = rank, i
        if at < 0:
            break
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces
