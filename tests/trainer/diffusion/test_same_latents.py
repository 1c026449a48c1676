"""Latents that the network of a checkpoint cannot take are refused by what differs; identities go through JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from model.dit_config import LatentSpace
from trainer.diffusion.same_latents import LATENTS, check_same_latents, latents_identity, space_of_identity

PLAIN = LatentSpace(
    structure_shape=(3, 4, 2, 2), dynamics_shape=(2, 8, 4), classes=("a", "b", "c"), autoencoder="0" * 64
)
TEXT = replace(PLAIN, text_width=6, text_encoder="e" * 64, text_max_tokens=16, text_empty_tokens=2)


def check(then: LatentSpace, now: LatentSpace) -> None:
    check_same_latents(json.loads(json.dumps({LATENTS: latents_identity(then)})), now, "data.shards=x")


@pytest.mark.parametrize(("space", "text_shape"), [(PLAIN, (0, 0)), (TEXT, (2, 6))])
def test_the_identity_of_a_space_gives_it_back(space: LatentSpace, text_shape: tuple[int, int]) -> None:
    check(space, space)
    assert space_of_identity(json.loads(json.dumps(latents_identity(space))), text_shape) == space


@pytest.mark.parametrize(
    ("then", "changes", "message"),
    [
        (
            PLAIN,
            {"structure_shape": (3, 4, 2, 4)},
            r"has latents of structure_shape=\[3, 4, 2, 4\], .* had \[3, 4, 2, 2\]",
        ),
        (PLAIN, {"dynamics_shape": (2, 4, 4)}, r"has latents of dynamics_shape=\[2, 4, 4\], .* had \[2, 8, 4\]"),
        (PLAIN, {"autoencoder": "1" * 64}, f"have the digest {'1' * 64}, and .* by that of {'0' * 64}"),
        (PLAIN, {"classes": ("a", "c")}, r"\(without samples: b\)"),
        (PLAIN, {"classes": ("a", "b", "c", "d")}, r"\(new: d\)"),
        (PLAIN, {"classes": ("a", "c", "b")}, r"\(in another order\)"),
        (PLAIN, {"text_width": 6, "text_encoder": "e" * 64, "text_max_tokens": 16}, "are of no encoder, and .* eeee"),
        (TEXT, {"text_width": 0}, "are of the encoder e{64} with at most 16 tokens, and those .* of no encoder"),
        (TEXT, {"text_encoder": "f" * 64}, "are of the encoder e{64} .* of the encoder f{64} with at most 16 tokens"),
        (TEXT, {"text_max_tokens": 15}, "with at most 16 tokens, and .* with at most 15 tokens"),
    ],
)
def test_what_differs_is_named(then: LatentSpace, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(then, replace(then, **changes))
