"""Both kinds of the authors' tokenizers are read as the `tokenizers` library reads them; what is none is refused."""

from __future__ import annotations

import copy
import json

import pytest
from byte_models import scrambled_tokenizer, word_level_tokenizer

from netssmd.codec.byte_vocab import END, NOTHING, PKT, ByteVocabulary, bpe, labels_of, names_of_tokenizer
from netssmd.model.checkpoint import _tokenizer_dict

TEXT = "<|netflix|> 188 34 203 0 7 255 <|pkt|> 10 110 200"


def of(document: dict, size: int = 272) -> ByteVocabulary:
    names = names_of_tokenizer(document, size)
    return ByteVocabulary(tuple(names), labels_of(names), 128, framed=False)


@pytest.mark.parametrize("document", [scrambled_tokenizer(), word_level_tokenizer()], ids=["bpe", "wordlevel"])
def test_ids_are_those_of_the_library(document: dict) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer.from_str(json.dumps(document))
    vocabulary = of(document)
    ids = library.encode(TEXT).ids
    words = TEXT.split()
    assert len(ids) == len(words)
    assert [vocabulary.names[i] for i in ids] == words
    assert ids[0] == vocabulary.begin("netflix")
    for byte in range(256):
        assert library.encode(str(byte)).ids == [vocabulary.byte_ids[byte]]
        assert vocabulary.byte_of[vocabulary.byte_ids[byte]] == byte
    assert vocabulary.byte_of[vocabulary.pkt] == PKT and vocabulary.byte_of[vocabulary.end] == END


def test_the_junk_entry_and_the_padding_mean_nothing() -> None:
    vocabulary = of(scrambled_tokenizer())
    junk = vocabulary.names.index("256")
    assert vocabulary.byte_of[junk] == NOTHING
    assert vocabulary.names[261:] == tuple(f"<|none-{i}|>" for i in range(261, 272))
    assert sum(vocabulary.drawable()) == 257
    assert not any(vocabulary.drawable()[i] for i in (junk, 1, 3, *range(261, 272)))
    assert vocabulary.labels == ("netflix",)


def test_what_we_write_is_a_tokenizer_of_the_library() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    for vocabulary in (ByteVocabulary.make(("amazon", "netflix"), 94), of(scrambled_tokenizer())):
        library = tokenizers.Tokenizer.from_str(json.dumps(_tokenizer_dict(vocabulary.token_names())))
        words = "<|netflix|> 188 34 <|pkt|> 0 255 <|endoftext|>"
        ids = library.encode(words).ids
        assert [vocabulary.names[i] for i in ids] == words.split()
        assert library.get_vocab_size() == vocabulary.size
        assert of(json.loads(library.to_str()), vocabulary.size).names == vocabulary.names


def test_a_tokenizer_built_by_the_library_is_read() -> None:
    """BPE trained on decimal strings, as the published one was; the library writes merges as pairs."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.CharDelimiterSplit(" ")
    special = ["<|endoftext|>", "<|padding|>", "<|pkt|>", "<|netflix|>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=261, special_tokens=special, show_progress=False)
    library.train_from_iterator([" ".join(str(b % 256) for b in range(300, 300 + 4096))] * 3, trainer)
    names = names_of_tokenizer(json.loads(library.to_str()), 272)
    vocabulary = ByteVocabulary(tuple(names), labels_of(names), 128, framed=False)
    for byte in range(256):
        assert library.encode(str(byte)).ids == [vocabulary.byte_ids[byte]]


def changed(document: dict, *path, value) -> dict:
    document = copy.deepcopy(document)
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


def test_bad_tokenizers_are_named() -> None:
    bpe_one, words = scrambled_tokenizer(), word_level_tokenizer()
    without = changed(words, "model", "vocab", value={str(b): b for b in range(256) if b not in (7, 200)})
    with pytest.raises(ValueError, match=r"no token for byte 7, 200$"):
        of(without)
    with pytest.raises(ValueError, match=r"no token for byte 0, 1, 2, 3, 4, 5, 6, 7 \.\.\."):
        of(changed(words, "model", "vocab", value={}))
    with pytest.raises(ValueError, match=r"has id 2\d\d, but the weights have 256 rows"):
        of(words, 256)
    with pytest.raises(ValueError, match=r"id 9 is both '9' and '<\|pkt\|>'"):
        of(changed(words, "added_tokens", 3, "id", value=9))
    with pytest.raises(ValueError, match=r"no token <\|pkt\|>"):
        of(changed(words, "added_tokens", 3, "content", value="<|packet|>"))
    with pytest.raises(ValueError, match=r"model\.type is 'Unigram'"):
        of({"model": {"type": "Unigram", "vocab": []}})
    with pytest.raises(ValueError, match="has id 'x'"):
        of(changed(words, "model", "vocab", "7", value="x"))
    merges = [merge for merge in bpe_one["model"]["merges"] if merge.replace(" ", "") != "77"]
    with pytest.raises(ValueError, match=r"byte 77 is written as 2 tokens \(7 7\)"):
        of(changed(bpe_one, "model", "merges", value=merges))


def test_byte_pairs_are_joined_by_rank() -> None:
    ranks = {("1", "0"): 0, ("1", "1"): 1, ("1", "10"): 2}
    assert bpe("110", ranks) == ["110"]
    assert bpe("111", ranks) == ["11", "1"]
    assert bpe("2", ranks) == ["2"]


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("framed", [False, True])
def test_a_vocabulary_comes_back_from_json(framed: bool, conditioned: bool) -> None:
    a = ByteVocabulary.make(("x", "y"), 106, ("udp",), framed, conditioned)
    b = ByteVocabulary.from_json(json.loads(json.dumps(a.to_json())))
    assert b.to_json() == a.to_json() and b.byte_of == a.byte_of
    assert b.width == len(b.told_rows("x", None)) + 1
    assert all(a.size <= row < a.rows for row in a.told_rows("y", {"rtt_ms": 20.0}) + a.told_rows(None, None))
    with pytest.raises(ValueError, match="expected 262 and"):
        ByteVocabulary.from_json({**a.to_json(), "size": 9})
    with pytest.raises(ValueError, match="format 9"):
        ByteVocabulary.from_json({**a.to_json(), "format": 9})
    with pytest.raises(ValueError, match="packets of 95 bytes; there are 94, 106, 128"):
        ByteVocabulary.make((), 95)
    with pytest.raises(ValueError, match="protocol 'icmp'"):
        ByteVocabulary.make((), 94, ("icmp",))
