"""Tokenizers for tests of the server: a byte-level one, and one with spaces as letters and bytes to fall back to."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from loratory.server.tokenizer import ServerTokenizer

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_level() -> Tokenizer:
    """Ids 0 to 255 are bytes, 257 ends a text, some more are words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(alphabet)}
    vocabulary |= {f"<{token}>": token for token in range(258, 320)} | {"<|start|>": 256, "<|eos|>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|start|>", special=True), AddedToken("<|eos|>", special=True)])
    return tokenizer


def byte_level_tokenizer() -> ServerTokenizer:
    """See `byte_level`."""
    made = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|eos|>", chat_template=TEMPLATE)
    return ServerTokenizer(made, "here")


def fallback_tokenizer() -> ServerTokenizer:
    """As Llama 2's: a word begins with ▁, and what the vocabulary lacks is written as bytes."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {piece: 259 + place for place, piece in enumerate(["▁", "a", "b", "▁a", "ab", "▁ab"])}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return ServerTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"), "here")
