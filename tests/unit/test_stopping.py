"""Automata over tokens end a row exactly where a search through its text would."""

import itertools
import json

import numpy as np
import pytest

from bridgex_jax.models.load import read_tokenizer
from bridgex_jax.models.stopping import (
    DONE,
    START,
    either,
    stop_at_answer_end,
    stop_at_ids,
    stop_at_strings,
    token_bytes,
)

# Tokens of a byte, of several, of parts of characters, and without text.
TOKENS = [b"", *(c.encode() for c in "abn \n"), b"ab", b"ba", b"ana", b"\n\n", b"a\nb",
          *(bytes([b]) for b in "é".encode()), b"ban", b"n ", b"\x00"]  # fmt: skip


def end(stops, ids):
    """How many tokens a row has when it ends; None if it does not."""
    state = START
    for n, token in enumerate(ids, 1):
        state = stops.table[state, token]
        if state == DONE:
            return n
    return None


def end_of_text(strings, ids, tokens=TOKENS):
    for n in range(1, len(ids) + 1):
        text = b"".join(tokens[i] for i in ids[:n])
        if any(s.encode() in text for s in strings):
            return n
    return None


@pytest.mark.parametrize(
    "strings", [("\n",), ("banana",), ("ana", "nab", "\n\n"), ("é", "aa"), ("abab", "bab", "b a")]
)
def test_a_string_is_found_across_tokens_wherever_it_begins(strings):
    stops = stop_at_strings(strings, TOKENS)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(TOKENS), (600, 12)).tolist()
    ends = [end(stops, row) for row in rows]
    assert ends == [end_of_text(strings, row) for row in rows]
    assert any(ends) and None in ends


def test_the_first_of_two_rules_ends_a_row():
    pairs = list(itertools.product(range(len(TOKENS)), repeat=3))
    first, second = stop_at_strings(("ana", "\n"), TOKENS), stop_at_ids((2, 9), len(TOKENS))
    both = either(first, second, stop_at_strings(("ba",), TOKENS))
    third = stop_at_strings(("ba",), TOKENS)
    for row in pairs:
        ends = [n for stops in (first, second, third) if (n := end(stops, row))]
        assert end(both, row) == (min(ends) if ends else None)
    assert both.dropped == {2, 9} and both.strings == (b"ana", b"\n", b"ba")


def test_an_answer_ends_with_its_line_and_a_quoted_one_with_the_next_quote():
    line, opening, quotes, n = (0, 1), (2, 3), (2, 3, 4), 7
    stops = stop_at_answer_end(line, opening, quotes, n)
    for row in itertools.product(range(n), repeat=4):
        quoted = row[0] in opening
        ends = [i + 1 for i, t in enumerate(row) if t in line or (i and quoted and t in quotes)]
        assert end(stops, row) == (ends[0] if ends else None)


def test_a_done_row_stays_done_and_tables_are_small_and_of_few_sizes():
    for strings in (("a",), ("banana",), ("ana", "nab", "bbbbbbb"), ("a" * 90, "b" * 60)):
        table = stop_at_strings(strings, TOKENS).table
        assert (table[DONE] == DONE).all() and table.min() >= 0 and table.max() < len(table)
        assert len(table) & (len(table) - 1) == 0
    assert table.dtype == np.int16  # 151 states in 256 rows
    assert stop_at_strings(("banana",), TOKENS).table.dtype == np.int8


def test_the_text_is_cut_before_the_earliest_string():
    stops = stop_at_strings((" n", "ab"), TOKENS)
    ids = [TOKENS.index(b"ban"), TOKENS.index(b" "), TOKENS.index(b"n ")]
    assert stops.cut("ban n ", ids, TOKENS) == "ban"
    assert stops.cut("ban", ids[:1], TOKENS) == "ban"
    # SentencePiece writes no space before its first word.
    words = [b" ban", b" a"]
    assert stop_at_strings((" a",), words).cut("ban a", [0, 1], words) == "ban"
    assert stop_at_strings((" ban",), words).cut("ban a", [0, 1], words) == ""


def test_a_token_that_ends_a_row_is_dropped_only_where_it_is_no_part_of_the_answer():
    stops = stop_at_ids((5,), 9)
    assert stops.trim([1, 5], True) == [1]
    assert stops.trim([1, 5], False) == [1, 5]  # the last of a row that ran out of room
    assert stops.trim([1, 4], True) == [1, 4]


def test_an_empty_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        stop_at_strings(("a", ""), TOKENS)


# --- the bytes of tokens -----------------------------------------------------------------------

TEXTS = ["Grüße, 世界!\n", "שלום → a  b", '🙂 \t"x"']


def test_bytes_of_byte_level_tokens_are_those_of_the_text(tiny_model):
    tokenizer = tiny_model.tokenizer
    tokens = token_bytes(tokenizer, 330)
    assert len(tokens) == 330 and tokens[0] == tokens[1] == tokens[325] == b""
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(tokens[i] for i in ids) == text.encode()


def sentencepiece_directory(tmp_path):
    """As Llama 2 has it: words with their space, bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a",
              "▁ab", "x", "!", ","]  # fmt: skip
    model = {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)},
             "merges": [["▁", "a"], ["▁a", "b"]], "unk_token": "<unk>", "byte_fallback": True,
             "fuse_unk": True}  # fmt: skip
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]  # fmt: skip
    added = [{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": i < 3} for i, c in enumerate(pieces[:3])]  # fmt: skip
    added.append(added[0] | {"id": len(pieces), "content": "<tool> x", "special": False})
    normalizers = [{"type": "Prepend", "prepend": "▁"},
                   {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": None,
        "post_processor": None, "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path, pieces


def test_bytes_of_sentencepiece_tokens_are_those_of_the_text_with_its_first_space(tmp_path):
    directory, pieces = sentencepiece_directory(tmp_path)
    tokenizer = read_tokenizer(directory)
    tokens = token_bytes(tokenizer, len(pieces) + 4)
    assert tokens[pieces.index("▁ab")] == b" ab" and tokens[3 + 10] == b"\n"
    assert tokens[2] == b"" and tokens[len(pieces)] == b"<tool> x" and tokens[-1] == b""
    for text in (*TEXTS, "ab a,b!"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(tokens[i] for i in ids) == b" " + text.encode()
