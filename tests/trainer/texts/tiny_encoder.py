"""A text encoder with random weights, and a WordPiece tokenizer of a few words; both are saved by transformers."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("a", "caption", "of", "runs", "cat", "dog", "the", "two", "men", "##s", "##ning", ",", ".", "é")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WIDTH, LIMIT = 12, 16
"""Width of an embedding, and the tokens that the encoder takes at most."""


def save_encoder(folder: Path, seed: int = 0, *, width: int = WIDTH) -> Path:
    """A BERT of two layers with its tokenizer, which cuts a word that it does not know into single characters."""
    import tokenizers
    import transformers

    characters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789")
    vocabulary = [*SPECIAL, *WORDS, *characters, *(f"##{letter}" for letter in characters)]
    numbers = {word: number for number, word in enumerate(dict.fromkeys(vocabulary))}
    model = tokenizers.models.WordPiece(numbers, unk_token="[UNK]")
    pieces = tokenizers.Tokenizer(model)
    pieces.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
    pieces.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    named = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=LIMIT, **named).save_pretrained(
        folder
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=len(numbers),
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=LIMIT,
            initializer_range=0.5,
        )
        transformers.BertModel(config).eval().save_pretrained(folder)
    return folder


def expected(folder: Path, caption: str, max_tokens: int = LIMIT) -> torch.Tensor:
    """What transformers gives for one caption alone, called as its documentation does: float32 [L, width]."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(caption, return_tensors="pt", truncation=True, max_length=max_tokens)
    with torch.no_grad():
        return model(**inputs).last_hidden_state[0]
