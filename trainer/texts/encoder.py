"""A text encoder of Hugging Face from a local directory: its identity, its tokens, its last hidden states.

Nothing is downloaded, no code of the directory is run, and weights are read from safetensors alone. What is supported:

* models that `AutoModel` opens and that give a last hidden state for tokens (BERT, RoBERTa, MPNet, CLIPTextModel, ...);
* encoder-decoder models, of which the encoder is taken: T5, mT5 and UMT5 also where only the encoder was saved.

Captions that go through the model together all have as many tokens. So there is no padding, and an embedding is that
of the caption alone. L tokens of a caption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from data_pipeline.dataset.captions import EMPTY
from data_pipeline.outside.documents import read_json_object
from data_pipeline.outside.regular import check_regular, read_regular
from model.weights import UNREADABLE
from trainer.config.learning import Precision
from trainer.texts.encoder_files import FAULTS, MOST_BYTES, check_config, check_files, tensors_in

_CONFIG = "config.json"
_TOKENIZER_FILES = (
    *("added_tokens.json", "chat_template.jinja", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json"),
    *("spiece.model", "spm.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"),
    "vocab.txt",
)
_ENCODER_OF = frozenset({"t5", "mt5", "umt5"})
"""Models whose encoder transformers opens on its own; of other encoder-decoder models it opens both parts."""
_BEHIND_PADDING = frozenset(
    [
        *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
        *("xlm-roberta", "xlm-roberta-xl", "xmod"),
    ]
)
"""Models whose first token has the position `pad_token_id + 1`, so they take so many tokens fewer than positions."""
_NO_LIMIT = 1_000_000
"""A tokenizer that knows no limit says a number far beyond this."""
_DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """What makes two directories the same encoder, and what it takes and gives."""

    digest: str  # SHA-256 over configuration, weights and the files of the tokenizer
    model: str  # `model_type` of its configuration
    width: int  # of a token's embedding
    limit: int  # tokens that the encoder takes at most; 0 where it has no limit
    empty_tokens: int  # tokens of the empty caption


@dataclass(frozen=True)
class Tokens:
    """The tokens of one caption.

    Attributes:
        ids: at most the wanted number of them, special tokens included.
        whole: number of tokens of the whole caption.
    """

    ids: list[int]
    whole: int

    @property
    def truncated(self) -> bool:
        """Whether the caption was cut."""
        return self.whole > len(self.ids)


def require_transformers() -> None:
    """Raises: ValueError where the library is not installed, with the remedy."""
    if find_spec("transformers") is None:
        raise ValueError("text encoders are those of transformers, which is missing: pip install -e '.[text]'")


def encoder_version() -> str:
    """What decides embeddings besides settings, encoder and device: this program and the libraries."""
    import tokenizers
    import transformers  # an extra

    torch_version = torch.__version__.partition("+")[0]
    return f"texts-1 torch-{torch_version} transformers-{transformers.__version__} tokenizers-{tokenizers.__version__}"


def encoder_digest(folder: Path, named: str = "encoder=") -> str:
    """SHA-256 over configuration, names, types, shapes and values of the weights, and the files of the tokenizer.

    The values count and not the files of the weights, so weights that were saved again in other pieces are the same.

    Args:
        named: the option that names the folder, for messages.
    Raises:
        ValueError: the folder holds no encoder whose weights are safetensors.
    """
    if not (folder / _CONFIG).is_file():
        raise ValueError(
            f"{named}{folder}: no {_CONFIG} there; name the directory of a Hugging Face encoder with its tokenizer"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{named}{folder}: no *.safetensors there, and other weights are not read, because pickle can run code; "
            "open the model once with transformers and write it with save_pretrained(DIR)"
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ValueError(f"{named}{folder}: no tokenizer there; copy its files beside the encoder's {_CONFIG}")
    check_files(folder, files, named)
    digest = hashlib.sha256()
    for name in (_CONFIG, *_TOKENIZER_FILES):
        if (folder / name).is_file():
            text = read_regular(folder / name, MOST_BYTES)
            digest.update(f"{name} {hashlib.sha256(text).hexdigest()}\n".encode())
    try:
        digest.update(_weights_digest(files))
    except UNREADABLE as error:
        raise ValueError(f"{named}{folder}: a file of weights cannot be read: {_first_line(error)}") from error
    return digest.hexdigest()


def _weights_digest(files: Sequence[Path]) -> bytes:
    """Digest of the tensors of all files in the order of their names; one tensor is in memory at a time."""
    found: dict[str, str] = {}
    for file in files:
        check_regular(file)
        with safetensors.safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():
                tensor = opened.get_tensor(name).contiguous()
                values = hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).hexdigest()
                found[name] = f"{name} {tensor.dtype} {list(tensor.shape)} {values}\n"
    return hashlib.sha256("".join(text for _, text in sorted(found.items())).encode()).digest()


class Tokenizer:
    """The tokenizer of an encoder's directory.

    Args:
        folder: the directory.
        named: the option that names it, for messages.
    Raises:
        ValueError: there is none that can be opened without running code of the directory.
    """

    def __init__(self, folder: Path, named: str = "encoder=") -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder.absolute()), local_files_only=True, trust_remote_code=False
            )
            if not isinstance(self._tokenizer.model_max_length, int | float):
                raise ValueError("model_max_length of tokenizer_config.json must be a number")
        except FAULTS as error:
            raise ValueError(f"{named}{folder}: its tokenizer cannot be opened: {_first_line(error)}") from error

    @property
    def limit(self) -> int:
        """Tokens that it was made for; 0 where it says none."""
        limit = self._tokenizer.model_max_length
        return int(limit) if limit < _NO_LIMIT else 0

    def tokens(self, text: str, max_tokens: int) -> Tokens:
        """The tokens of a text, cut to `max_tokens` with the special tokens kept; 0 cuts nothing."""
        ids = self._ids(text)
        whole = len(ids)
        if max_tokens and whole > max_tokens:
            ids = self._ids(text, truncation=True, max_length=max_tokens)
        return Tokens(ids, whole)

    def _ids(self, text: str, **options: Any) -> list[int]:
        return list(map(int, self._tokenizer(text, verbose=False, **options)["input_ids"]))


def identify_encoder(folder: Path, named: str = "encoder=") -> EncoderIdentity:
    """The identity of the encoder in a directory; its weights are read, but no model is built.

    Raises:
        ValueError: no encoder that is supported; the message names the folder and the remedy.
    """
    require_transformers()
    digest = encoder_digest(folder, named)
    config = _config(folder, named)
    tokenizer = Tokenizer(folder, named)
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int) or getattr(config, "text_config", None) is not None:
        raise ValueError(
            f"{named}{folder}: a model of the type {config.model_type!r} is no text encoder; name the directory of "
            "one, such as text_encoder/ of a pipeline, with the files of its tokenizer"
        )
    empty = tokenizer.tokens(EMPTY, 0).whole
    if not empty:
        raise ValueError(
            f"{named}{folder}: its tokenizer makes no token of the empty caption, which stands for a dropped one; "
            "take an encoder whose tokenizer adds special tokens"
        )
    positions = getattr(config, "max_position_embeddings", None) or 0
    if positions and config.model_type in _BEHIND_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    limits = [limit for limit in (tokenizer.limit, positions) if limit > 0]
    return EncoderIdentity(
        digest=digest,
        model=str(config.model_type),
        width=width,
        limit=min(limits, default=0),
        empty_tokens=empty,
    )


def _config(folder: Path, named: str) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        check_config(read_json_object(folder / _CONFIG), tensors_in(folder))
        return AutoConfig.from_pretrained(str(folder.absolute()), local_files_only=True, trust_remote_code=False)
    except (*FAULTS, safetensors.SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{named}{folder}: its {_CONFIG} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class TextEncoder:
    """An encoder on a device that turns tokens into embeddings.

    Args:
        folder: its directory.
        device: where to compute.
        precision: of weights and activations.
        named: the option that names the folder, for messages.
    Raises:
        ValueError: weights are missing, or the model cannot be opened.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        precision: Precision = Precision.fp32,
        *,
        named: str = "encoder=",
    ) -> None:
        from transformers import AutoModel, AutoModelForTextEncoding
        from transformers.utils import logging

        logging.disable_progress_bar()  # a script's own lines say what it does
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.device = device
        config = _config(folder, named)
        kind = AutoModelForTextEncoding if config.model_type in _ENCODER_OF else AutoModel
        try:
            model, found = kind.from_pretrained(
                str(folder.absolute()),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=_DTYPES[precision],
                output_loading_info=True,
            )
        except (*FAULTS, safetensors.SafetensorError) as error:
            raise ValueError(f"{named}{folder}: the encoder cannot be opened: {_first_line(error)}") from error
        # A pooler stands behind the last hidden state, and a directory without one is complete.
        if missing := sorted(name for name in found["missing_keys"] if "pooler" not in name):
            raise ValueError(f"{named}{folder}: the weights lack {len(missing)} tensors, the first is {missing[0]}")
        model = model.eval().requires_grad_(False)
        if config.is_encoder_decoder and config.model_type not in _ENCODER_OF:
            model = model.get_encoder()
        self._model = model.to(device)

    @torch.inference_mode()
    def encode(self, ids: Sequence[Sequence[int]], batch: int) -> list[Tensor]:
        """The last hidden state of each caption, float32 [L, width] on the host.

        Args:
            ids: of each caption.
            batch: captions that go through the model together at most; they have the same L.
        """
        found: dict[int, Tensor] = {}
        for group in batches_of_equal_length(list(map(len, ids)), batch):
            tokens = torch.tensor([list(ids[place]) for place in group], device=self.device)
            hidden = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
            found |= dict(zip(group, hidden.float().cpu(), strict=True))
        return [found[place] for place in range(len(ids))]


def batches_of_equal_length(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Places of items that are all as long, at most `batch` together, shorter ones first; a pure function."""
    places = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    found: list[list[int]] = []
    for place in places:
        if not found or len(found[-1]) == batch or lengths[found[-1][0]] != lengths[place]:
            found.append([])
        found[-1].append(place)
    return found
