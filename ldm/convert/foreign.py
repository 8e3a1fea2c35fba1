"""Published checkpoints: what their states hold, and the one mapping between their names and ours.

They perhaps have ``loss.*`` and an average ``model_ema.*`` under names without dots. Files are read by foreign_file.py.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

State = dict[str, Tensor]
Names = tuple[tuple[str, str], ...]  # (prefix of ours, prefix of theirs), in the order of the published files

FIRST_STAGE: Names = (
    ("autoencoder.encoder.", "encoder."),
    ("autoencoder.decoder.", "decoder."),
    ("regularizer.embedding.", "quantize.embedding."),
    ("autoencoder.quant_conv.", "quant_conv."),
    ("autoencoder.post_quant_conv.", "post_quant_conv."),
)
# What only training needs. The perceptual distance is frozen, and comes from its own file.
FIRST_STAGE_LOSS: Names = (
    ("reconstruction.logvar", "loss.logvar"),
    ("reconstruction.discriminator.", "loss.discriminator."),
)
LEFT_OUT = ("loss.perceptual_loss.", "loss.colorize")
LOSS = "loss."
AVERAGE = "model_ema."

# A latent diffusion model: its schedule's buffers, in their order, and the prefix of its network.
SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
NETWORK = "model.diffusion_model."
CLASSES = "label_emb.weight"  # of the network, in models of num_classes
LATENT = "first_stage_model."
CONDITIONER = "cond_stage_model."
LOG_VARIANCE = "logvar"  # learned, of the loss at each step
SCALE_FACTOR = "scale_factor"
AVERAGE_COUNTERS = ("model_ema.decay", "model_ema.num_updates")
# What some files hold that no model needs: a sampler's tables, weights of a loss, positions counted from 0.
IRREGULAR = (
    "ddim_",
    "lvlb_weights",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "cond_stage_model.transformer.embeddings.position_ids",
)
# The factors published with KL first stages, by f and channels, where a diffusion model's file does not hold its own.
SCALE_FACTORS = {(8, 4): 0.18215, (16, 16): 0.22765929}


def below(state: Mapping[str, Tensor], prefix: str) -> State:
    """What of a state lies under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def average_name(name: str) -> str:
    """Where a published average holds the parameter `name`: under its name without dots."""
    return AVERAGE + name.replace(".", "")


def published(names: Names, state: Mapping[str, Tensor]) -> State:
    """Our state under the published names and in their order; names that are not in `names` are left out."""
    return {
        theirs + key.removeprefix(ours): value
        for ours, theirs in names
        for key, value in state.items()
        if key.startswith(ours)
    }


def ours(names: Names, state: Mapping[str, Tensor]) -> State:
    """The inverse of `published`: a published state under our names; names that are not in `names` are kept."""
    return {_renamed(key, [(theirs, own) for own, theirs in names]): value for key, value in state.items()}


def _renamed(key: str, prefixes: Iterable[tuple[str, str]]) -> str:
    return next((new + key.removeprefix(old) for old, new in prefixes if key.startswith(old)), key)


def split_average(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """(the state without its average, the average under full names; empty if there is none).

    An average's names are those of the parameters without dots, so they are found through them.
    """
    plain = {key: value for key, value in state.items() if not key.startswith(AVERAGE)}
    return plain, {key: state[average_name(key)] for key in plain if average_name(key) in state}
