"""Prompts: from words or a file to token embeddings, by the encoder whose texts the DiT was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.dataset.captions import caption_digest
from data_pipeline.store.text import read_lines
from model.dit import DiT
from model.dit_config import Conditioning, LatentSpace
from trainer.sampling.generate import Wanted
from trainer.texts.encoder import TextEncoder, Tokenizer, encoder_digest, require_transformers

_ENCODER = "--encoder "
_BATCH = 32
_DIGITS = 12
"""Hexadecimal digits of a prompt's SHA-256 in the names of its files."""


@dataclass(frozen=True)
class Prompt:
    """A caption of what is to be made.

    Attributes:
        place: where it was given, for messages.
    """

    text: str
    place: str


def listed_prompts(words: Sequence[str], file: Path | None) -> list[Prompt]:
    """The prompts of the command line and those of a file, one a line, each text once.

    Raises:
        ValueError: the file is missing or not UTF-8, or a line or word is empty or no text; the message names the line.
    """
    found = [Prompt(text, f"--prompts, number {number}") for number, text in enumerate(words, 1)]
    if file is not None:
        try:
            lines = read_lines(file)
        except FileNotFoundError:
            raise ValueError(f"--prompt-file {file}: no such file") from None
        except IsADirectoryError:
            raise ValueError(f"--prompt-file {file} is a folder; name a text file with a prompt in each line") from None
        if not lines:
            raise ValueError(f"--prompt-file {file} is empty; write one prompt in each line")
        found += [Prompt(text, f"{file} line {number}") for number, text in enumerate(lines, 1)]
    for prompt in found:
        _refuse_no_text(prompt)
        if not prompt.text.strip():
            raise ValueError(f"{prompt.place}: the prompt is empty; remove it, or write what is to be seen")
    distinct = {prompt.text: prompt for prompt in reversed(found)}  # the first place of each text stays
    return [prompt for prompt in found if distinct[prompt.text] is prompt]


def _refuse_no_text(prompt: Prompt) -> None:
    """Refuse bytes of the command line that were no UTF-8, which Python keeps as lone surrogates, and the character 0.

    Raises:
        ValueError: naming the byte or the character.
    """
    try:
        prompt.text.encode()
    except UnicodeEncodeError as error:
        code = ord(prompt.text[error.start])
        what = f"the byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"the lone surrogate U+{code:04X}"
        raise ValueError(f"{prompt.place}: the prompt holds {what}, which is not UTF-8; write it in UTF-8") from error
    if "\0" in prompt.text:
        raise ValueError(f"{prompt.place}: the prompt holds a NUL character; remove it")


def encode_prompts(
    space: LatentSpace, folder: Path, prompts: Sequence[Prompt], device: torch.device
) -> dict[str, Tensor]:
    """Token embeddings of prompts, by their texts: float32 [L, text width], on the host.

    Args:
        space: says which encoder and how many tokens the DiT knows.
        folder: of the encoder.
        device: where it computes.
    Raises:
        ValueError: it is another encoder, or a prompt has too many tokens; the message names its line.
    """
    require_transformers()
    digest = encoder_digest(folder, _ENCODER)
    if digest != space.text_encoder:
        raise ValueError(
            f"{_ENCODER}{folder} is the encoder of the digest {digest}, and --model was trained with texts of "
            f"{space.text_encoder}; name that encoder"
        )
    tokenizer = Tokenizer(folder, _ENCODER)
    tokens = [tokenizer.tokens(prompt.text, space.text_max_tokens) for prompt in prompts]
    for prompt, its in zip(prompts, tokens, strict=True):
        if its.truncated:
            raise ValueError(
                f"{prompt.place}: the prompt has {its.whole} tokens, and --model reads at most "
                f"{space.text_max_tokens}; shorten it: {prompt.text[:60]!r}"
            )
    encoder = TextEncoder(folder, device, named=_ENCODER)
    found = encoder.encode([its.ids for its in tokens], _BATCH)
    return {prompt.text: text.clone() for prompt, text in zip(prompts, found, strict=True)}


def wanted_prompts(
    dit: DiT,
    prompts: Sequence[Prompt],
    folder: Path | None,
    classes: Sequence[str],
    count: int,
    device: torch.device,
) -> list[Wanted]:
    """`count` samples of each prompt. A name is made of the prompt's digest, so it does not depend on other prompts.

    Args:
        folder: of the encoder.
        classes: of the command line, which a DiT that knows captions does not take.
    Raises:
        ValueError: the DiT knows no captions, an option is missing or too much, or see `encode_prompts`.
    """
    if dit.config.condition is not Conditioning.text:
        raise ValueError(
            f"--model is a DiT with dit.condition={dit.config.condition.value}, which knows no captions; leave "
            "--prompts, --prompt-file and --encoder away"
        )
    if classes:
        raise ValueError(f"--classes {classes[0]}: --model is a DiT without classes; leave --classes away")
    if not prompts:
        raise ValueError("--encoder is for prompts; name some with --prompts or --prompt-file")
    if folder is None:
        raise ValueError("--prompts and --prompt-file need --encoder, the encoder whose texts --model was trained with")
    texts = encode_prompts(dit.space, folder, prompts, device)
    return [
        Wanted(text, number, f"prompt-{caption_digest(text)[:_DIGITS]}-{number:05d}", embedding)
        for text, embedding in texts.items()
        for number in range(count)
    ]
