"""Which latents a DiT learns from, as a checkpoint says it beside the position in the data, and how two of them differ.

A run that goes on and a fork keep the network of the checkpoint. So the shapes of their latents, the autoencoder that
made these, the classes in their order, and the encoder of the texts must be the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.dit_config import LatentSpace

LATENTS = "latents"
"""The key in the identity of a loader."""


def latents_identity(space: LatentSpace) -> dict[str, Any]:
    """The value of the key `LATENTS`, which JSON gives back as it is."""
    text = {"encoder": space.text_encoder, "max_tokens": space.text_max_tokens} if space.text_width else None
    return {
        "structure_shape": list(space.structure_shape),
        "dynamics_shape": list(space.dynamics_shape),
        "autoencoder": space.autoencoder,
        "classes": list(space.classes),
    } | ({} if text is None else {"text": text})


def space_of_identity(identity: Mapping[str, Any], text_shape: tuple[int, ...]) -> LatentSpace:
    """Undo `latents_identity`, which does not say the shape of the empty caption, because the weights have it.

    Args:
        identity: what `latents_identity` gave.
        text_shape: of the embeddings of the empty caption: (tokens, width); (0, 0) without text.
    """
    empty_tokens, width = text_shape
    text = identity.get("text", {"encoder": "", "max_tokens": 0})
    structure, dynamics = (tuple(identity[name]) for name in ("structure_shape", "dynamics_shape"))
    return LatentSpace(
        structure_shape=structure,
        dynamics_shape=dynamics,
        classes=tuple(identity["classes"]),
        text_width=width,
        text_encoder=text["encoder"],
        text_max_tokens=text["max_tokens"],
        text_empty_tokens=empty_tokens,
        autoencoder=identity["autoencoder"],
    )


def check_same_latents(saved: Mapping[str, Any], space: LatentSpace, place: str) -> None:
    """Refuse latents that the network of a checkpoint cannot take.

    Args:
        saved: the identity of the loader that the checkpoint's run had.
        space: the present latents.
        place: how messages begin; the setting that names the present latents.
    Raises:
        ValueError: naming what differs.
    """
    then, now = saved[LATENTS], latents_identity(space)
    for name in ("structure_shape", "dynamics_shape"):
        if then[name] != now[name]:
            raise ValueError(
                f"{place} has latents of {name}={now[name]}, and the checkpoint's run had {then[name]}; name latents "
                "of that shape, or begin another run"
            )
    if then["autoencoder"] != now["autoencoder"]:
        raise ValueError(
            f"{place} was encoded by the model whose weights have the digest {now['autoencoder']}, and the latents of "
            f"the checkpoint's run by that of {then['autoencoder']}; name latents of that model, or begin another run"
        )
    if then.get("text") != now.get("text"):
        raise ValueError(
            f"the texts of the checkpoint's run are of {_texts(then.get('text'))}, and those of data.text are of "
            f"{_texts(now.get('text'))}; name texts of that encoder, or begin another run"
        )
    if then["classes"] != now["classes"]:
        difference = _difference(then["classes"], now["classes"])
        raise ValueError(
            f"{place} has other classes than the checkpoint's run had ({difference}); "
            "name the latents of that run, or begin another run"
        )


def _texts(text: Mapping[str, Any] | None) -> str:
    if text is None:
        return "no encoder"
    return f"the encoder {text['encoder']} with at most {text['max_tokens']} tokens"


def _difference(then: list[str], now: list[str]) -> str:
    parts = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("without samples", [name for name in then if name not in now]),
            ("new", [name for name in now if name not in then]),
        )
        if names
    ]
    return "; ".join(parts) or "in another order"
