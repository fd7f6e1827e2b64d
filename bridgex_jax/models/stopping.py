"""Where a generated text ends: a deterministic automaton over tokens.

`table[state, token]` is the next state, so that decoding a row is one look-up a step whatever the
rule is: end-of-sequence tokens, a line end, the closing quote of an answer, or any of several
strings, which may lie across tokens (a token runs the automaton of Knuth, Morris, Pratt, Aho and
Corasick over its bytes). The table is data, padded to a power of two of states: another rule of
about the same size compiles nothing. Axes: V (axes.py); S = states.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from jaxtyping import Int

DONE, START = 0, 1
_LITTLE = (np.int8, np.int16, np.int32)
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, eq=False)
class Stops:
    """Rows begin in START, end when they reach DONE and stay there.

    dropped: tokens that, ending a row, are no part of its answer.
    strings: an answer is cut before the first of them.
    """

    table: Int[np.ndarray, "S V"]
    dropped: frozenset[int] = frozenset()
    strings: tuple[bytes, ...] = ()

    def trim(self, ids: Sequence[int], ended: bool) -> list[int]:
        """The tokens of a row without the one that ended it, where that is no part of it."""
        return list(ids[:-1] if ended and ids[-1] in self.dropped else ids)

    def cut(self, text: str, ids: Iterable[int], tokens: Sequence[bytes]) -> str:
        """`text`, which is `ids` decoded, before the first of `strings`.

        tokens: the bytes of every token of the vocabulary.
        """
        whole = b"".join(tokens[i] for i in ids) if self.strings else b""
        places = [place for string in self.strings if (place := whole.find(string)) >= 0]
        if not places:
            return text
        before = whole[: min(places)].decode(errors="replace")
        # SentencePiece writes a word with its space, and decodes the first one without.
        return before if text.startswith(" ") else before.removeprefix(" ")


def stop_at_ids(ids: Collection[int], vocab_size: int) -> Stops:
    """Ends with any of the tokens, which is no part of the answer; without ids, never."""
    table = np.full((2, vocab_size), START)
    table[START, list(ids)] = DONE
    return Stops(_packed(table), frozenset(ids))


def stop_at_answer_end(
    line_ends: Collection[int], opening: Collection[int], quotes: Collection[int], vocab_size: int
) -> Stops:
    """Ends with a line end or, if it begins with one of `opening`, with the next of `quotes`."""
    plain, quoted = START + 1, START + 2
    table = np.full((4, vocab_size), plain)
    table[START, list(opening)] = table[quoted] = quoted
    table[quoted, list(quotes)] = DONE
    table[:, list(line_ends)] = DONE
    return Stops(_packed(table), frozenset(line_ends))


def stop_at_strings(strings: Sequence[str], tokens: Sequence[bytes]) -> Stops:
    """Ends with the token that completes any of the strings.

    tokens: the bytes of every token (`token_bytes`). Raises ValueError for an empty string.
    """
    if not all(strings):
        raise ValueError("an empty string would end every answer before it begins")
    wanted = tuple(string.encode() for string in strings)
    over_bytes = _byte_table(wanted)
    lengths = np.array([len(token) for token in tokens])
    width = max(1, lengths.max(initial=0))
    # NumPy pads with zero bytes, which the lengths tell from a token's own.
    data = np.array(tokens, f"S{width}").view(np.uint8).reshape(len(tokens), width)
    table = np.repeat(np.arange(len(over_bytes))[:, None], len(tokens), axis=1)
    for place in range(width):
        there = np.flatnonzero(lengths > place)
        table[:, there] = over_bytes[table[:, there], data[there, place]]
    return Stops(_packed(table), strings=wanted)


def either(*stops: Stops) -> Stops:
    """Ends where the first of them ends. Raises TypeError without any."""
    return reduce(_both, stops)


def _both(first: Stops, second: Stops) -> Stops:
    """The product automaton, of the pairs of states that can be reached."""
    n_second = len(second.table)
    pairs = [(START, START)]
    number = {START * n_second + START: START}
    rows = [np.full(first.table.shape[1], DONE)]
    for a, b in pairs:  # grows
        to_a, to_b = first.table[a].astype(np.int64), second.table[b].astype(np.int64)
        codes = np.where((to_a == DONE) | (to_b == DONE), -1, to_a * n_second + to_b)
        distinct, place = np.unique(codes, return_inverse=True)
        for code in distinct[distinct >= 0].tolist():
            if code not in number:
                number[code] = START + len(pairs)
                pairs.append(divmod(code, n_second))
        rows.append(np.array([number.get(code, DONE) for code in distinct.tolist()])[place])
    return Stops(
        _packed(np.stack(rows)),
        first.dropped | second.dropped,
        tuple(dict.fromkeys(first.strings + second.strings)),
    )


def _packed(table: Int[np.ndarray, "S V"]) -> Int[np.ndarray, "S V"]:
    """In the smallest type, with DONE absorbing and states that nothing reaches at the end."""
    table[DONE] = DONE
    more = (1 << (len(table) - 1).bit_length()) - len(table)
    dtype = next(t for t in _LITTLE if len(table) <= np.iinfo(t).max)
    return np.pad(table, ((0, more), (0, 0))).astype(dtype)


def _byte_table(strings: Sequence[bytes]) -> Int[np.ndarray, "S 256"]:
    """The automaton over bytes: a state is the longest beginning of a string that was just read."""
    beginnings = sorted({s[:n] for s in strings for n in range(len(s))}, key=len)
    state = {beginning: START + i for i, beginning in enumerate(beginnings)}
    table = np.full((START + len(beginnings), 256), START)
    table[DONE] = DONE
    for beginning in beginnings:
        for byte in set(b"".join(strings)):
            read = beginning + bytes([byte])
            suffixes = (read[n:] for n in range(len(read) + 1))
            ended = any(read.endswith(string) for string in strings)
            longest = DONE if ended else next(state[s] for s in suffixes if s in state)
            table[state[beginning], byte] = longest
    return table


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """What every token adds to a text, in UTF-8; special tokens and unused ids add nothing.

    A token may hold a part of a character, so these are bytes: from the alphabet of byte-level BPE,
    from the `▁` and `<0xNN>` of SentencePiece, elsewhere from the token decoded alone.
    """
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids)
    n_known = min(vocab_size, 1 + max(tokenizer.get_vocab().values()))
    kind = _decoder_kind(tokenizer)
    alphabet = _byte_alphabet() if kind == "ByteLevel" else {}

    def read(i: int, piece: str | None) -> bytes:
        if piece is None or i in special or (i in added and added[i].special):
            return b""
        if i in added:
            return added[i].content.encode()
        if kind == "ByteLevel" and alphabet.keys() >= set(piece):
            return bytes(alphabet[char] for char in piece)
        if kind == "SentencePiece":
            byte = _BYTE.fullmatch(piece)
            return bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()
        return tokenizer.decode([i]).encode()

    pieces = tokenizer.convert_ids_to_tokens(range(n_known))
    known = [read(i, piece) for i, piece in enumerate(pieces)]
    return known + [b""] * (vocab_size - n_known)


def _decoder_kind(tokenizer: Any) -> str:
    """ByteLevel, SentencePiece, or "" for another."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = (json.loads(backend.to_str())["decoder"] if backend is not None else None) or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}
    if "ByteLevel" in kinds:
        return "ByteLevel"
    return "SentencePiece" if kinds & {"ByteFallback", "Metaspace"} else ""


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {char: byte for byte, char in bytes_to_unicode().items()}
