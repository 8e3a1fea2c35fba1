"""Facts about single keys that neither conf/ nor the constructors state: kind, type, and the key that owns them."""

import re
from typing import Any, Literal

# Taken from the command line as text, character by character, before Hydra's grammar sees it.
TEXTS = frozenset(
    {
        "prompt",
        "to_prompt",
        "negative_prompt",
        "prompts",
        "phrases",
        "run",
        "plugins",
        "overrides",
        "autoencoder_overrides",
        "branch_overrides",
        "diffusion_overrides",
        "first_stage_overrides",
    }
)
TEXTS_OF = frozenset({"overrides_of", "words"})  # mappings whose every value is such a text
# Files, folders and runs, whose text is literal too. `~` is the home in all of them; those of the second kind are
# saved as they were written and expanded by the code that reads them.
PATHS = frozenset(
    {
        "first_stage",
        "branch",
        "base",
        "continued",
        "init",
        "model",
        "weak_model",
        "classifier",
        "again",
        "target",
        "start",
        "start_mask",
        "paint",
        "image",
        "mask",
        "low",
        "map",
        "boxes",
        "neighbours",
        "style",
        "styles",
        "runs_dir",
        "out",
        "source",
        "checkpoint",
        "validation",
        "reference",
        "npz",
        "shards",
        "held_out",
        "members",
        "models",
        "stages",
        "suite",
        "study",
        "answers",
        "results",
        "fashion",
        "plan",
    }
)
LATER_PATHS = frozenset(
    {
        "data.train",
        "data.validation",
        "data.cache",
        "data.filters.exclude",
        "alignment.weights",
        "conditioner.caption_transformer.tokenizer",
    }
)
LITERAL = TEXTS | PATHS | LATER_PATHS
# Keys for which an empty text, as from an unset shell variable, would silently mean something else.
NEVER_EMPTY = LATER_PATHS | PATHS | {"run"}
# Those among them that a command has nothing to do without, and what is given for them.
NEVER_LEFT_OUT = {
    "model": "runs/NAME, a run or a manifest",
    "checkpoint": "FILE, of weights",
    "source": "FOLDER, of images",
    "models": "runs/NAME or [runs/a,runs/b]",
    "members": "[runs/a,runs/b]",
    "stages": "[runs/a,runs/b]",
}
# A list of paths is one of these.
SHARDS = frozenset(("data.train", "data.validation", "validation", "reference", "shards", "held_out"))
LISTS = SHARDS | {"members", "models", "stages", "answers", "styles", "plugins"}  # where [a,b] are several

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
LEGACY_PRECISIONS = (16, 32, 64, "16", "32", "64", "bf16", "transformer-engine", "transformer-engine-float16")

# Types of root keys that their defaults do not tell, of one root where its name is before the key.
ROOT_TYPES = {
    "image_size": int,
    "crop_size": int | list[float],
    "compile": bool | Literal["blocks", "whole", "graphs"],
    "make_canvases.size": int | list[int],
    "make_canvases.objects": list[int],
    "make_canvases.sides": list[float],
    "make_canvases.textured": float,
    "height": int,
    "width": int,
    "label": int | str | list[int | str],
    "phrases": str | dict[str, Any],
    "num_steps": int,
    "evaluate.num_samples": int,
    "evaluate.num_steps": int | list[int],
    "paired": list[str],
    "low_noise": float,
    "strength": float,
    "attention_shares.at": list[float],
    "attention_shares.num_levels": int,
    "composed_suite.size": int,
    "composed_suite.categories": list[str],
    "prompt_switch.switch": list[float],
    "condition_curves.use_conditions": list[list[str]],
    "condition_curves.scales": list[float],
    "condition_curves.words": list[int],
    "condition_curves.sheet_scale": float,
    "canvas": int | list[int],
    "to_seed": int,
    "sample.turns": int,
    "tile": int,
    "members": list[str],
    "stages": list[str],
    "cascade.resident": Literal["all", "one"],
    "merge_experts.weights": list[float],
    "models": str | list[str],
    "cluster_plan.per_gpu": int | None,
    "cluster_plan.batch_size": int | None,
    "styles": str | list[str],
    "style_sheet.num_styles": int,
    "answers": str | list[str],
    "prompt_suite.prompts": str,
    "score_shards.caption": str | None,
    "seconds": float,
    "v100s": float,
    "use_conditions": list[str],
    "evaluate.use_conditions": list[str] | list[list[str]],
    "validation": str | list[str],
    "reference": str | list[str],
    "reference.shards": str | list[str],
    "reference.max_samples": int,
    "held_out": str | list[str],
    "num_levels": int | None,
    "root_steps": int | None,
    "propose_split.steps": int | None,
    "runs": list[str],
    "ablation.rows": list[str],
    "samplers": list[str],
    "steps": list[int],
    "prompts": str | list[str],
    "branch_optimizer": Literal["fresh", "keep"],
    "branch_weights": Literal["ema"],
    "branch_changes": list[str],
    "callback_add": list[str],
    "plugins": list[str],
    "flips": bool,
    "precision": Literal["fp32", "bf16"],
    "encode.precision": Literal["fp16", "fp32"],
    "quickstart.precision": Literal[PRECISIONS],
}
POSITIVE = frozenset(
    {
        "image_size",
        "height",
        "width",
        "accumulation",
        "max_steps",
        "num_steps",
        "num_images",
        "num_samples",
        "batch_size",
        "turns",
        "enlarge",
    }
)
# Upper limits beyond what anyone uses: otherwise a few digits in an untrusted file could take all memory.
AT_MOST = {"image_size": 1 << 16, "height": 1 << 16, "width": 1 << 24, "num_timesteps": 1_000_000, "num_steps": 1 << 20,
           "enlarge": 64, "seed": (1 << 63) - 1}  # fmt: skip
# Types of Lightning's keys whose annotations allow less than it accepts, or more.
TRAINER_TYPES = {
    "trainer.devices": int | list[int] | Literal["auto"],
    "trainer.limit_val_batches": int,
    "trainer.gradient_clip_val": float | None,
    "trainer.precision": Literal[("auto", *PRECISIONS, *LEGACY_PRECISIONS)],
}
# Lightning's keys that a run sets itself, and our key for each.
OWNED = {
    "trainer.max_steps": "max_steps",
    "trainer.min_steps": "max_steps",
    "trainer.max_epochs": "max_steps",
    "trainer.min_epochs": "max_steps",
    "trainer.max_time": "max_steps",
    "trainer.accumulate_grad_batches": "accumulation",
    "trainer.default_root_dir": "runs_dir",
    "trainer.callbacks": "callback",
    "trainer.logger": "logger",
    "trainer.enable_checkpointing": "callback.checkpoint",
    "trainer.use_distributed_sampler": "data",
    "trainer.fast_dev_run": "max_steps",
    "trainer.limit_train_batches": "data.max_samples",
    "trainer.overfit_batches": "data.max_samples",
    "trainer.val_check_interval": "callback.validation.every_steps",
    "trainer.check_val_every_n_epoch": "callback.validation.every_steps",
    "trainer.reload_dataloaders_every_n_epochs": "data",
    "trainer.barebones": "callback",
    "trainer.log_every_n_steps": "callback.metrics.every_steps",
}
# Groups of what a run measures itself with: asked for whenever it is started, and neither saved nor built from a saved
# tree, which may be somebody else's and name any file.
MEASURES = frozenset({"metric", "alignment"})
# How to set what is neither an option of a group nor a key of a part.
WAYS = {
    "weak_model": "it compares with a second, worse network; sample.py and scripts/evaluate.py take it as "
    "weak_model=runs/NAME",
    "classifier": "it goes by a classifier of noisy latents; sample.py and scripts/evaluate.py take it as "
    "classifier=runs/NAME, and experiment=quickstart/classifier trains one",
    "first_stage": "has to be given, a run of the autoencoder that this experiment names",
    "moment_channels": "choose regularizer=kl or regularizer=vq",
    "latent_channels": "choose regularizer=kl or regularizer=vq",
    "denoiser": "choose one with network=...",
}
# Keys that hold several of what their constructor takes one of, to be done one after the other.
SWEPT = {"evaluate": ("guidance.scale",)}
# Groups of which any key may hold several.
SWEPT_GROUPS = {"evaluate": ("guidance", "sampler", "sigmas")}
# Of roots where no guidance is chosen: what its keys belong to, which change the run's own.
UNCHOSEN = {
    "evaluate": {"guidance": "ldm.diffusion.guidance.ClassifierFree", "guidance.limits": "ldm.diffusion.limits.Limits"}
}


def is_path(key: str) -> bool:
    """Whether a key names a file, a folder or a run."""
    return key in PATHS or key in LATER_PATHS or key.endswith(".path") or key.startswith("given.")


def is_literal(key: str) -> bool:
    """Whether what follows ``key=`` is text, character by character."""
    first, dot, _ = key.partition(".")
    return key in TEXTS or bool(dot and first in TEXTS_OF) or is_path(key)


def bare(word: str) -> str:
    """The key of a word of the command line, without what stands before it (``+``, ``++``, ``~``) and its value."""
    return re.match(r"(?:\+\+?|~)?([^=]*)", word)[1]


def root_type(config_name: str, key: str, default: Any) -> Any:
    """What a key of the root ``conf/<config_name>.yaml`` takes."""
    plain = str if default in (None, "???") else type(default)
    annotation = ROOT_TYPES.get(f"{config_name}.{key}", ROOT_TYPES.get(key, plain))
    return annotation | None if default is None else annotation
