"""ServerTokenizer: a checkpoint's tokenizer and chat template, for prompts that come in and tokens that go out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from loratory.errors import InputError, shortened

T = TypeVar("T")

LONG_TEXT = 4000
"""Characters above which a text is tokenised in a thread: the event loop would stand still for a millisecond."""


class ServerTokenizer:
    """What a server does with text: encode it, put messages into the chat template, decode tokens.

    All methods may be called from any thread: they use the tokenizers library's own object, which is not changed after
    it is loaded.
    """

    def __init__(self, tokenizer: Any, where: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(f"{where} holds no fast tokenizer: put a tokenizer.json there")
        backend.no_truncation()
        backend.no_padding()
        self._tokenizer = tokenizer
        self._backend = backend
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._bytes: dict[int, bytes] = {}
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(token for token, each in added.items() if each.special)
        self.byte_level = type(backend.decoder).__name__ == "ByteLevel"
        """Whether a text is the tokens' bytes side by side."""
        self.eos_token_ids = frozenset([] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)])
        self.has_template = bool(getattr(tokenizer, "chat_template", None))

    @classmethod
    def load(cls, folder: str | Path) -> ServerTokenizer:
        """The tokenizer of a checkpoint folder. Raises `InputError` where there is none."""
        from transformers import AutoTokenizer  # slow to import

        try:
            return cls(AutoTokenizer.from_pretrained(str(folder), local_files_only=True), str(folder))
        except InputError:
            raise
        except Exception as error:  # transformers raises what its readers raise, of many types
            raise InputError(
                f"{folder} holds no tokenizer that transformers reads ({shortened(str(error), 150)}): "
                "copy tokenizer.json and tokenizer_config.json there"
            ) from None

    def close(self) -> None:
        """End the thread that tokenises."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        A long one goes through the library's batch call, which lets other threads run meanwhile: `encode` holds
        Python's lock, and with 15 MB of text stops the whole server for half a minute.
        """
        if len(text) > LONG_TEXT:
            (encoded,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        else:
            encoded = self._backend.encode(text, add_special_tokens=add_special_tokens)
        ids: list[int] = encoded.ids
        return ids

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids that the tokenizer does not know are left out."""
        if len(tokens) > LONG_TEXT:
            (text,) = self._backend.decode_batch([list(tokens)], skip_special_tokens=skip_special_tokens)
        else:
            text = self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return str(text)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """Messages as the model's chat template writes them.

        Raises `InputError` where the model has no template, and for messages that it refuses.
        """
        if not self.has_template:
            raise InputError("this model has no chat template: use /v1/completions")
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        except Exception as error:  # a template raises what its author likes
            raise InputError(f"the chat template refuses these messages: {shortened(str(error), 200)}") from None
        return text

    async def in_thread(self, size: int, work: Callable[[], T]) -> T:
        """``work()``, in the tokenizer's thread if a text has ``size`` > `LONG_TEXT` characters."""
        if size <= LONG_TEXT:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, special tokens included; those of a part of a character are not UTF-8."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._read_bytes(token)
        return found

    def token_text(self, token: int) -> str:
        """One token as text; a part of a character is shown as U+FFFD."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def knows(self, token: int) -> bool:
        """Whether a token id is one of the tokenizer's."""
        return self._backend.id_to_token(token) is not None

    def is_special(self, token: int) -> bool:
        """Whether `decode` leaves the token out where special tokens are skipped."""
        return token in self._special

    def _read_bytes(self, token: int) -> bytes:
        if not self.byte_level:
            return self.decode([token], skip_special_tokens=False).encode()
        name = self._backend.id_to_token(token)
        if name is None:
            return b""
        letters = [_BYTES.get(letter) for letter in name]
        # As the library does: a token with a character that stands for no byte is plain text.
        return name.encode() if None in letters else bytes(byte for byte in letters if byte is not None)


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes, as byte-level vocabularies write them: printable ones stand for themselves, the
    others for the letters from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    letters = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in letters.values()]
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()
