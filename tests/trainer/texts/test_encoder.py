"""Which directories are encoders, which encoder they are, and what is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.tools.extras import NEEDS_TRANSFORMERS
from tests.trainer.texts.corpus import config_of, encode_here
from tests.trainer.texts.tiny_encoder import LIMIT, expected, save_encoder
from trainer.texts.encoder import TextEncoder, Tokenizer, batches_of_equal_length, encoder_digest, identify_encoder

pytestmark = NEEDS_TRANSFORMERS

CPU = torch.device("cpu")


def test_batches_hold_captions_of_one_length() -> None:
    lengths = [3, 5, 3, 3, 2, 5]
    assert batches_of_equal_length(lengths, 2) == [[4], [0, 2], [3], [1, 5]]
    assert batches_of_equal_length([], 2) == []


def test_the_digest_is_of_values_and_not_of_files(encoder: Path, tmp_path: Path) -> None:
    same = Path(shutil.copytree(encoder, tmp_path / "same"))
    weights = safetensors.torch.load_file(same / "model.safetensors")
    (same / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:5], names[5:])):
        safetensors.torch.save_file({name: weights[name] for name in part}, same / f"part-{number}.safetensors")
    assert encoder_digest(same) == encoder_digest(encoder)
    assert encoder_digest(save_encoder(tmp_path / "other", seed=1)) != encoder_digest(encoder)
    words = Path(shutil.copytree(encoder, tmp_path / "words"))
    (words / "tokenizer.json").write_text((words / "tokenizer.json").read_text().replace('"cat"', '"car"'))
    assert encoder_digest(words) != encoder_digest(encoder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"])
def test_each_file_that_changes_what_an_encoder_gives_changes_its_digest(
    encoder: Path, tmp_path: Path, name: str
) -> None:
    other = Path(shutil.copytree(encoder, tmp_path / "other"))
    file = other / name
    file.write_bytes((file.read_bytes() if file.exists() else b"{}") + b"\n")
    assert encoder_digest(other) != encoder_digest(encoder)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights, name: {name: weights[name].view(torch.int32)},
        lambda weights, name: {name: weights[name].flatten()},
        lambda weights, name: {name + "_of_another": weights.pop(name)},
    ],
    ids=["type", "shape", "name"],
)
def test_the_same_bytes_as_another_tensor_are_another_encoder(
    encoder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor], str], dict[str, torch.Tensor]]
) -> None:
    other = Path(shutil.copytree(encoder, tmp_path / "other"))
    weights = safetensors.torch.load_file(other / "model.safetensors")
    changed = change(weights, "embeddings.word_embeddings.weight")
    safetensors.torch.save_file(weights | changed, other / "model.safetensors")
    assert encoder_digest(other) != encoder_digest(encoder)


def tokenizer_into(encoder: Path, folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(encoder / name, folder / name)
    return folder


@pytest.mark.parametrize("whole", [True, False], ids=["T5Model", "T5EncoderModel"])
def test_of_t5_the_encoder_is_taken(encoder: Path, tmp_path: Path, whole: bool) -> None:
    import transformers  # seconds to import

    config = transformers.T5Config(vocab_size=100, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    torch.manual_seed(0)
    model = (transformers.T5Model if whole else transformers.T5EncoderModel)(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer_into(encoder, tmp_path)
    identity = identify_encoder(tmp_path)
    assert (identity.model, identity.width, identity.limit) == ("t5", 8, LIMIT)
    ids = Tokenizer(tmp_path).tokens("a cat", 0).ids
    (found,) = TextEncoder(tmp_path, CPU).encode([ids], 1)
    with torch.no_grad():
        wanted = (model.encoder if whole else model)(input_ids=torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_of_another_encoder_decoder_the_encoder_is_taken(encoder: Path, tmp_path: Path) -> None:
    import transformers

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = transformers.BartConfig(
        vocab_size=100,
        d_model=8,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=32,
        **sizes,
    )
    torch.manual_seed(0)
    model = transformers.BartModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer_into(encoder, tmp_path)
    ids = Tokenizer(tmp_path).tokens("a cat", 0).ids
    (found,) = TextEncoder(tmp_path, CPU).encode([ids], 1)
    with torch.no_grad():
        wanted = model.get_encoder()(input_ids=torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_of_clip_the_text_encoder_is_taken_from_a_directory_of_its_own(encoder: Path, tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.CLIPTextConfig(vocab_size=100, max_position_embeddings=12, **sizes)
    torch.manual_seed(0)
    model = transformers.CLIPTextModel(text).eval()
    (tmp_path / "text").mkdir()
    model.save_pretrained(tmp_path / "text")
    tokenizer_into(encoder, tmp_path / "text")
    assert identify_encoder(tmp_path / "text").limit == 12
    ids = Tokenizer(tmp_path / "text").tokens("a cat", 0).ids
    (found,) = TextEncoder(tmp_path / "text", CPU).encode([ids], 1)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
    vision = transformers.CLIPVisionConfig(image_size=8, patch_size=4, **sizes)
    (tmp_path / "both").mkdir()
    both = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    transformers.CLIPModel(both).save_pretrained(tmp_path / "both")
    tokenizer_into(encoder, tmp_path / "both")
    with pytest.raises(ValueError, match=r"a model of the type 'clip' is no text encoder; name the directory of one"):
        identify_encoder(tmp_path / "both")


def test_captions_of_several_lengths_come_back_in_their_order(encoder: Path) -> None:
    captions = ["a cat", "two men", "", "the dog runs, a cat", "dog"]
    tokenizer = Tokenizer(encoder)
    found = TextEncoder(encoder, CPU).encode([tokenizer.tokens(text, LIMIT).ids for text in captions], batch=2)
    for caption, tokens in zip(captions, found, strict=True):
        torch.testing.assert_close(tokens, expected(encoder, caption), rtol=0, atol=2e-6)


def test_an_encoder_that_counts_positions_from_behind_the_padding_takes_fewer_tokens(
    encoder: Path, tmp_path: Path
) -> None:
    """Of 12 positions such a model uses those from 2 on, which nothing but the error of a longer caption says."""
    from transformers import MPNetConfig, MPNetModel

    folder = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    MPNetModel(MPNetConfig(vocab_size=200, max_position_embeddings=12, **sizes)).save_pretrained(folder)
    limit = identify_encoder(folder).limit
    opened = TextEncoder(folder, CPU)
    assert opened.encode([[5] * limit], 1)[0].shape == (limit, 12)
    with pytest.raises((IndexError, RuntimeError)):
        opened.encode([[5] * (limit + 1)], 1)


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def without_special_tokens(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))


def with_fewer_tensors(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["embeddings.word_embeddings.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def with_cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def with_sizes_beyond_all_tensors(folder: Path) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def with_settings(**settings: object) -> Callable[[Path], None]:
    """Other values in its configuration."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


def with_a_pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def with_an_index_that_leads_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))


def with_code_of_its_own(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('this code was run')\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_weights, r"no \*\.safetensors there, and other weights are not read, because pickle can run code"),
        (without_tokenizer, r"no tokenizer there; copy its files beside"),
        (without_special_tokens, r"its tokenizer makes no token of the empty caption"),
        (with_fewer_tensors, r"the weights lack 1 tensors, the first is embeddings.word_embeddings.weight"),
        (with_cut_weights, r"a file of weights cannot be read"),
        (with_sizes_beyond_all_tensors, r"a file of weights cannot be read: [^\n]*\Z"),
        (with_code_of_its_own, r"its config.json cannot be read"),
        (with_a_pipe, r"tokenizer.json is a FIFO"),
        (with_an_index_that_leads_elsewhere, r"index.json names files that are no \*\.safetensors of this folder"),
        (with_settings(_attn_implementation="owner/repository"), r"_attn_implementation asks for more than"),
        (with_settings(num_hidden_layers=10**7), r"num_hidden_layers=10000000 is more than the \d+ tensors"),
        (with_settings(hidden_size="x"), r"its config.json cannot be read"),
        (with_settings(num_attention_heads=0), r"the encoder cannot be opened"),
        (
            lambda folder: (folder / "tokenizer.json").write_text("[" * 10**5),
            r"tokenizer.json cannot be read: .*deeply",
        ),
        (lambda folder: (folder / "config.json").unlink(), r"no config.json there; name the directory"),
        (lambda folder: (folder / "config.json").write_text("{"), r"its config.json cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), r"its tokenizer.json cannot be read"),
    ],
)
def test_a_directory_that_is_no_encoder_is_refused(
    encoder: Path, captioned: Path, tmp_path: Path, spoil: object, message: str
) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        encode_here(config_of(folder, captioned, tmp_path / "texts"))
    assert not (tmp_path / "texts" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("text.max_tokens=17", "text.max_tokens=17: this encoder takes at most 16 tokens"),
        ("text.max_tokens=2", "text.max_tokens=2 leaves no room for a caption beside the 2 special tokens"),
        ("text.max_tokens=-1", "text.max_tokens=-1 must not be negative"),
        ("encoder=s3://bucket/encoder", "must be a folder of this machine"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    encoder: Path, captioned: Path, tmp_path: Path, words: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_here(config_of(encoder, captioned, tmp_path, words))
    assert not (tmp_path / "plan.json").exists()


def test_clips_are_no_latents(encoder: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--latents .* is a dataset of texts; give one of latents"):
        encode_here(config_of(encoder, texts, tmp_path))
