"""The text of an output: whole characters only, cut at stop strings, the same however the tokens are split."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="the server needs transformers")
from text_models import byte_level_tokenizer, fallback_tokenizer

from loratory.server.detokenizer import UNFINISHED, detokenizer
from loratory.server.output_text import OutputText
from loratory.server.tokenizer import ServerTokenizer

BYTE_LEVEL, FALLBACK = cache(byte_level_tokenizer), cache(fallback_tokenizer)
TOKENS = st.lists(st.integers(0, 330), max_size=40)
CUTS = st.lists(st.integers(0, 40), max_size=6)
TEXTS = st.text(st.sampled_from("ab 你é🙂�\n"), max_size=12)


def pieces(tokens: list[int], cuts: list[int]) -> list[list[int]]:
    """The tokens in parts, some of them empty."""
    ends = [0, *sorted(cut for cut in cuts if cut <= len(tokens)), len(tokens)]
    return [tokens[start:end] for start, end in pairwise(ends)]


@given(TOKENS, CUTS, st.booleans())
def test_bytes_side_by_side_give_exactly_what_the_whole_decodes_to(
    tokens: list[int], cuts: list[int], skip: bool
) -> None:
    tokenizer = BYTE_LEVEL()
    assert tokenizer.byte_level
    by = detokenizer(tokenizer, skip)
    parts = [by.put(part) for part in pieces(tokens, cuts)]
    assert "".join(parts) + by.end() == tokenizer.decode(tokens, skip)


@given(TEXTS, CUTS, st.sampled_from([BYTE_LEVEL, FALLBACK]))
@example("�你", [], FALLBACK)
@example("��你�", [3], FALLBACK)
@example("a�b��🙂�", [2, 9], FALLBACK)
def test_no_piece_ends_inside_a_character(text: str, cuts: list[int], tokenizer: object) -> None:
    """Of a text without U+FFFD, no piece has one; together they are the text."""
    used: ServerTokenizer = tokenizer()  # type: ignore[operator]
    tokens = used.encode(text, add_special_tokens=False)
    by = detokenizer(used)
    parts = [by.put(part) for part in pieces(tokens, cuts)] + [by.end()]
    assert "".join(parts) == used.decode(tokens)
    if UNFINISHED not in text:
        assert not any(UNFINISHED in part for part in parts)


@given(TOKENS, CUTS, CUTS)
def test_a_split_changes_no_text_of_other_tokenizers(tokens: list[int], cuts: list[int], others: list[int]) -> None:
    tokenizer = FALLBACK()
    assert not tokenizer.byte_level
    texts = []
    for split in (cuts, others):
        by = detokenizer(tokenizer)
        texts.append("".join([by.put(part) for part in pieces(tokens, split)]) + by.end())
    assert texts[0] == texts[1]


def cut(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """What is sent of a text: read character by character, up to the first that completes a stop string."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@given(
    st.text(st.sampled_from("ab�é"), max_size=30),
    st.lists(st.text(st.sampled_from("ab�é"), min_size=1, max_size=4), max_size=3, unique=True),
    CUTS,
    st.booleans(),
)
def test_an_output_is_cut_at_the_stop_string_that_ends_first(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    tokenizer = BYTE_LEVEL()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    out = OutputText(detokenizer(tokenizer), stops, include)
    wanted, stopped = cut(text, stops, include)
    sent = ""
    for part in pieces(tokens, cuts):
        sent += out.put(part)
        assert wanted.startswith(sent)  # never a part of a stop string that has to be taken back
    assert (sent + out.end(), out.stopped) == (wanted, stopped)


def test_stop_strings_are_not_looked_for_in_the_first_min_tokens() -> None:
    tokenizer = BYTE_LEVEL()
    tokens = tokenizer.encode("abcabc", add_special_tokens=False)
    for size in (1, 2, 6):
        out = OutputText(detokenizer(tokenizer), ["b"], min_tokens=3)
        parts = [out.put(tokens[start : start + size]) for start in range(0, 6, size)]
        assert "".join(parts) + out.end() == "abca" and out.stopped == "b"


def test_tokens_have_bytes_of_their_own() -> None:
    tokenizer = BYTE_LEVEL()
    tokens = tokenizer.encode("é", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, tokens)) == "é".encode() and len(tokens) == 2
    assert [tokenizer.token_text(token) for token in tokens] == [UNFINISHED, UNFINISHED]
    assert tokenizer.token_bytes(257) == b"<|eos|>" and tokenizer.is_special(257)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    from loratory.errors import InputError

    with pytest.raises(InputError, match="holds no tokenizer"):
        ServerTokenizer.load(tmp_path)
