"""Begins a training with the weights of a DiT that exists."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.outside.naming import naming
from model.config import WEIGHTS_FILE
from model.dit import DiT
from model.dit_config import DIT_CONFIG_FILE, Conditioning, DiTConfig, DiTDescription, LatentSpace
from model.weights import check_keys, load_tensors
from trainer.config.loader import word_of


def check_architecture(directory: Path, config: DiTConfig) -> DiTDescription:
    """What a directory of `init_from` says of its DiT; the weights and the latents of the run are not looked at.

    Raises:
        ValueError: the directory holds no DiT, or one of another architecture; the message names the file or the key.
    """
    for name in (DIT_CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise ValueError(
                f"init_from={directory}: {directory / name} not found; name a directory that holds {DIT_CONFIG_FILE} "
                f"and {WEIGHTS_FILE}"
            )
    with naming(f"init_from={directory}: "):
        its = DiTDescription.read(directory / DIT_CONFIG_FILE)
    for key, value in vars(config).items():
        if getattr(its.dit, key) != value:
            then = word_of(getattr(its.dit, key))
            raise ValueError(
                f"init_from={directory} has dit.{key}={then}, and this run has {word_of(value)}; set dit.{key}={then}, "
                "or name another DiT"
            )
    return its


def check_initial_dit(directory: Path, config: DiTConfig, space: LatentSpace) -> None:
    """Refuse a directory of `init_from` that holds no DiT, or one of another architecture, other latents or conditions.

    Raises:
        ValueError: naming the file or the key.
    """
    its = check_architecture(directory, config)
    for key in ("structure_shape", "dynamics_shape"):
        if getattr(its.latents, key) != getattr(space, key):
            raise ValueError(
                f"init_from={directory} is for latents of {key}={list(getattr(its.latents, key))}, and these are "
                f"{list(getattr(space, key))}"
            )
    if its.latents.autoencoder and space.autoencoder and its.latents.autoencoder != space.autoencoder:
        raise ValueError(
            f"init_from={directory} is for latents of the model whose weights have the digest "
            f"{its.latents.autoencoder}, and these are of {space.autoencoder}; name a DiT for latents of the same model"
        )
    if config.condition is Conditioning.text and its.latents.text_encoder != space.text_encoder:
        raise ValueError(
            f"init_from={directory} reads texts of the encoder {its.latents.text_encoder}, and data.text is of "
            f"{space.text_encoder}; encode the captions with that encoder"
        )
    if config.condition is Conditioning.class_ and its.latents.classes != space.classes:
        raise ValueError(
            f"init_from={directory} knows the classes {', '.join(its.latents.classes)}, and these latents have "
            f"{', '.join(space.classes)}"
        )


def load_initial_dit(directory: Path, dit: DiT) -> None:
    """Take the weights of a DiT, and keep the statistics of the latents that are trained from.

    Raises:
        ValueError: see `check_initial_dit`; weights that do not fit, naming the first.
    """
    check_initial_dit(directory, dit.config, dit.space)
    with naming(f"init_from={directory}: "):
        weights = load_tensors(directory / WEIGHTS_FILE)
        check_keys(weights, dit.state_dict(), str(directory / WEIGHTS_FILE))
    own = {name: value for name, value in dit.state_dict().items() if name.startswith(("normaliser.", "context.empty"))}
    dit.load_state_dict(weights | own)
