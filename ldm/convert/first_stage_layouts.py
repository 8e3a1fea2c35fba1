"""The layouts that a first stage is found in, and the published one made of each.

Alone or as a part of a whole model (``first_stage_model.*`` or another prefix), under the published names or those of
diffusers, as weights or as an average of them alone.
"""

import logging
import re
from collections.abc import Mapping

from torch import Tensor

from ldm.checkpoint import kinds
from ldm.convert.export import diffusers_names
from ldm.convert.foreign import AVERAGE, LATENT, State, average_name
from ldm.errors import UserError

log = logging.getLogger(__name__)
ANCHOR = "encoder.conv_in.weight"  # which all of these layouts have
DIFFUSERS = re.compile(r"^(en|de)coder\.(down|up)_blocks\.\d+\.resnets\.")
# Attention in files that diffusers wrote before 2023.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def in_published(state: State, expected: Mapping[str, Tensor], num_levels: int, source: str) -> State:
    """The first stage in `state` under the published names, `expected` being those and the shapes of the tree's.

    What was done is logged. Raises ValueError, saying what the file is, if there is no first stage in it.
    """
    if kinds.recognise(state) is kinds.OWN:
        raise kinds.refusal(state, source, "a published first stage")
    state = weights_of_average(state, expected, "", source)
    prefix = _prefix(state, source)
    if prefix:
        left = sum(not key.startswith(prefix) for key in state)
        beside = f"; {left} other keys are left" if left else ""
        log.warning("%s: the first stage is taken from its %s*%s", source, prefix, beside)
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if any(map(DIFFUSERS.match, state)):
        log.warning("%s: its names are those of diffusers", source)
        state = _from_diffusers(state, expected, num_levels)
    return state


def weights_of_average(state: State, expected: Mapping[str, Tensor], below: str, source: str) -> State:
    """A state that holds an average without the raw weights, with the average as weights; others unchanged.

    The average's names are those of the weights without dots and without the prefix `below`.
    """
    places = {key: average_name(key.removeprefix(below)) for key in expected if key.startswith(below)}
    taken = {key: state[place] for key, place in places.items() if key not in state and place in state}
    if not taken or any(key in state for key, place in places.items() if place in state):
        return state
    log.warning("%s: holds an average (%s*) without the weights it is of; it is taken for them", source, AVERAGE)
    return {**{key: value for key, value in state.items() if not key.startswith(AVERAGE)}, **taken}


def _prefix(state: State, source: str) -> str:
    """The prefix of the first stage's names."""
    prefixes = {key.removesuffix(ANCHOR) for key in state if key == ANCHOR or key.endswith(f".{ANCHOR}")}
    if not prefixes:
        raise kinds.refusal(state, source, "a first stage")
    likely = [prefix for prefix in ("", LATENT) if prefix in prefixes] or sorted(prefixes)
    if len(likely) > 1 and likely[0]:
        raise UserError(f"{source}: holds several first stages ({', '.join(likely)}); save the one that is meant alone")
    return likely[0]


def _from_diffusers(state: State, expected: Mapping[str, Tensor], num_levels: int) -> State:
    """Names of diffusers as the published ones; matrices as the 1x1 convolutions they were. Strange names stay."""
    state = {_new_attention(key): value for key, value in state.items()}
    theirs = dict(zip(diffusers_names(expected, num_levels), expected, strict=True))
    renamed = {theirs.get(key, key): value for key, value in state.items()}
    for key, value in renamed.items():
        if key in expected and value.ndim == 2 and expected[key].ndim == 4:
            renamed[key] = value[:, :, None, None]
    return renamed


def _new_attention(key: str) -> str:
    found = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", key)
    return f"{found[1]}.{_OLD_ATTENTION[found[2]]}.{found[3]}" if found else key


def facts(state: Mapping[str, Tensor]) -> str:
    """What a published state says of its first stage, KL or VQ, f, channels: for the error where it does not fit."""
    levels = {int(found[1]) for key in state if (found := re.match(r"encoder\.down\.(\d+)\.", key))}
    if not levels or "quant_conv.weight" not in state or "post_quant_conv.weight" not in state:
        return ""
    codes = state.get("quantize.embedding.weight")
    kind = "KL" if codes is None else f"VQ with {len(codes)} codes"
    width, (z_channels, channels) = len(state[ANCHOR]), state["post_quant_conv.weight"].shape[:2]
    ends = f", autoencoder.z_channels={z_channels}" if z_channels != channels else ""
    f = 2 ** max(levels)
    return f"; the file's is {kind}, f = {f}, regularizer.channels={channels}, autoencoder.channels={width}{ends}"
