"""The interface of a conditioner, and how several are merged into the keyword arguments of one network.

A conditioner fills slots from fields of the batch: "vector" [B, V], "tokens" [B, N, D] with their mask, "concat"
[B, K, h, w]. A dropped sample gets the conditioner's null. Draws are addressed by sample number.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioners.drop import Drop
from ldm.conditioners.frozen import Batch, FrozenEncoder
from ldm.conditioners.paint import painted_tokens
from ldm.conditioners.spans import Spans
from ldm.conditioners.token_bias import bias_of, filled, joined_masks
from ldm.diffusion.counter_random import uniform
from ldm.errors import UserError

SLOTS = ("vector", "tokens", "concat")
CHECKED = "conditioner.checked"  # a key of batches whose numbers were looked at: no other field has a dot


class Conditioner(nn.Module, ABC):
    """Field `key` of a batch -> one or several slots of the network, {slot: channels} as in `widths`, by one draw.

    Dropped in training with `drop_prob`, independently of other conditioners. One that never is has no null that the
    network knows: it is not `droppable`, and always given. `num_tokens` is the number of tokens of its null.
    """

    key: str | None  # None: it reads nothing
    also: tuple[str, ...] = ()  # fields that it reads beside it
    may_read: tuple[str, ...] = ()  # fields of numbers that change how it reads these, where a sample gives them
    reduces: int | None = None  # sides of the image over those of a slot "concat", where that is not the latent's
    reads_reduced: int | None = None  # sides of the image over those of the picture that it reads, where that is fixed
    optional = False  # whether its field may be left out in sampling, which drops the condition
    shares_first_stage = False  # whether published files hold a second copy of the first stage in its place
    frozen: FrozenEncoder | None = None

    def __init__(self, widths: Mapping[str, int], drop_prob: float, num_tokens: int = 0):
        super().__init__()
        if not widths or not set(widths) <= set(SLOTS):
            raise UserError(f"conditioner slots {', '.join(widths) or 'none'}: must be of {', '.join(SLOTS)}")
        if not 0 <= drop_prob <= 1:
            raise UserError(f"conditioner drop_prob={drop_prob}: must lie in [0, 1]")
        assert ("tokens" in widths) == (num_tokens > 0)
        self.widths = dict(widths)
        self.drop_prob = drop_prob
        self.num_tokens = num_tokens

    @property
    def droppable(self) -> bool:
        """Whether the network has seen its null."""
        return self.drop_prob > 0

    @property
    def fields(self) -> set[str]:
        """The batch fields that it reads."""
        return {name for name in (self.key, *self.also) if name is not None}

    def lacks(self, batch: Batch) -> bool:
        """Whether a batch lacks a field that it reads."""
        return any(field not in batch for field in self.fields)

    def unfit(self, count: int, vocabulary: int) -> dict[str, int]:
        """The keys that would have to be others for it to take `count` token numbers in 0..vocabulary - 1 of its field,
        with the values that they should have; none if it does.
        """
        return {}

    def check(self, batch: Batch) -> None:
        """Raise ValueError for values that it does not take, and say what of them it would not read."""
        self.check_values(batch)

    def check_values(self, batch: Batch) -> None:
        """Raise ValueError for numbers of a batch that it has no row for.

        A task asks before the device has the batch, and leaves `CHECKED` in it.
        """

    def spans(self, text: str) -> Spans | None:
        """Which characters of a text each of its tokens stands for; None where they stand for no words."""
        return None

    @abstractmethod
    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        """{slot: tensor} for each of its slots, the null where drop [B] (bool).

        "tokens_mask" [B, N] may be with them, or [B, N, h, w], which places see a token, and "tokens_bias"
        [B, N, h, w], how much more each place of the latent looks at each (`layers.attention`). A batch whose samples
        are all dropped need not hold the field.
        """

    def kept(self, images: Tensor, batch: Batch) -> Tensor:
        """Samples [B, 3, H, W] in [-1, 1] with what the condition says of their pixels itself: nothing, but of few."""
        return images

    def published_state(self) -> dict[str, Tensor]:
        """Its state in published files, by the names there without the conditioner's prefix."""
        return self.state_dict()


class Conditioners(nn.Module):
    """Named conditioners merged by slot: vectors along the last dimension, tokens in length, concats along channels."""

    def __init__(self, conditioners: Mapping[str, Conditioner] | None = None):
        super().__init__()
        self.parts = nn.ModuleDict(conditioners)
        self.register_buffer("_where", torch.empty(0), persistent=False)  # follows .to(device)
        _check_widths({name: part for name, part in self.parts.items() if "tokens" in part.widths})  # type: ignore[misc]  # all are Conditioners

    def widths(self) -> dict[str, int]:
        """What the network must take: tokens_width, vector_width, concat_channels; 0 where there is none."""
        widths = {slot: [c.widths[slot] for c in self.parts.values() if slot in c.widths] for slot in SLOTS}
        return {
            "tokens_width": max(widths["tokens"], default=0),
            "vector_width": sum(widths["vector"]),
            "concat_channels": sum(widths["concat"]),
        }

    def draw_drop(self, seed: int, numbers: Tensor) -> dict[str, Tensor]:
        """Which samples lose which condition, addressed by sample numbers [B] -> {name: bool [B]}."""
        known = numbers.cpu()  # which they are, where a task draws before the device has the batch
        return {
            name: Drop.of(uniform(seed, f"drop {name}", known)[:, 0] < conditioner.drop_prob).to(numbers.device)
            for name, conditioner in self.parts.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that can be left out, in order: dropped in training, so that the network knows their null."""
        return self.guidable()

    def guidable(self, negative: Collection[str] = (), use: Collection[str] | None = None) -> tuple[str, ...]:
        """Conditions `used` that a reference may lack: of `names`, or with their field in `negative` as null."""
        used = self.used(use)
        return tuple(name for name, part in used.items() if part.droppable or part.key in negative)

    def used(self, use: Collection[str] | None = None) -> dict[str, Conditioner]:
        """The conditioners of a sample: those in `use`, None being all, and those that are always given.

        Raises ValueError naming one that there is not.
        """
        unknown = [name for name in use or () if name not in self.parts]
        if unknown:
            raise UserError(
                f"use_conditions: no condition {', '.join(unknown)}; the conditions of this model: "
                f"{', '.join(self.parts) or 'none'}"
            )
        return {name: part for name, part in self.parts.items() if use is None or name in use or not part.droppable}  # type: ignore[misc]  # all are Conditioners

    @property
    def fields(self) -> set[str]:
        """The batch fields that the conditioners read."""
        return {field for conditioner in self.parts.values() for field in conditioner.fields}

    def encoders(self) -> dict[str, FrozenEncoder]:
        """The frozen encoders of those that have one."""
        return {name: conditioner.frozen for name, conditioner in self.parts.items() if conditioner.frozen is not None}

    def absent(self, batch: Batch, use: Collection[str] | None = None) -> set[str]:
        """The conditions `used` that the batch lacks and may lack: optional ones and, if any other is given, all that
        have a null.
        """
        if "encoded" in batch:
            return set()  # from a cache: fields of encoders that it lacks come with the batch
        reading = {name: part for name, part in self.used(use).items() if part.key is not None}
        lacking = {name: part for name, part in reading.items() if part.lacks(batch)}
        some_given = len(lacking) < len(reading)
        return {name for name, part in lacking.items() if part.droppable and (part.optional or some_given)}

    def missing(self, batch: Batch, use: Collection[str] | None = None) -> dict[str, str]:
        """Name and field of the conditions `used` that a batch has to give and does not."""
        absent = self.absent(batch, use)
        used = {name: part for name, part in self.used(use).items() if name not in absent}
        lacking = {name: [f for f in (part.key, *part.also) if f and f not in batch] for name, part in used.items()}
        return {name: fields[0] for name, fields in lacking.items() if fields}

    def check(self, batch: Batch, use: Collection[str] | None, given: Mapping[str, str]) -> None:
        """Conditioner.check of all that are `used` and whose fields are there; a refusal begins with what `given`
        {field: words} says of one of these.
        """
        for part in [part for part in self.used(use).values() if part.key is not None and not part.lacks(batch)]:
            try:
                part.check(batch)
            except UserError as error:
                named = [given[name] for name in (*part.also, part.key) if name in given]
                raise UserError(": ".join([*named[:1], str(error)])) from error

    def check_values(self, batch: Batch) -> None:
        """Conditioner.check_values of all whose fields are there."""
        for part in self.parts.values():
            if not part.lacks(batch):
                part.check_values(batch)

    def drop_all_but(
        self, given: Collection[str], num_samples: int, negative: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Drop every `guidable` condition that is not in `given`; the others are never dropped."""
        replaced = set(self.guidable(negative)) - set(given)
        device = self._where.device
        return {name: Drop.of(torch.full((num_samples,), name in replaced)).to(device) for name in self.parts}

    def drop_none(self, num_samples: int) -> dict[str, Tensor]:
        """Every condition kept."""
        return self.drop_all_but(self.parts.keys(), num_samples)

    def drop_all(self, num_samples: int) -> dict[str, Tensor]:
        """Every condition that has a null replaced by it."""
        return self.drop_all_but((), num_samples)

    def forward(
        self,
        batch: Batch,
        *,
        drop: Mapping[str, Tensor],
        negative: Batch | None = None,
        use: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """The network's keywords for a batch; `drop` as made by draw_drop or the methods beside it.

        A condition `used` that is dropped for the whole batch has its field of `negative`, if there, for its null.
        batch["tokens_bias"], {name: [B, N, h, w]} for the tokens of some conditions, is added to the bias of these, and
        so are the phrases that are painted (`Paint`). A bias is for what is given: it is zero where a sample is
        dropped, and left out where it is zero throughout.
        """
        parts: dict[str, list[Tensor]] = {}
        used, asked = self.used(use), batch.get("tokens_bias", {})
        painted = painted_tokens(used, batch)
        biases: list[tuple[Tensor, Tensor | None]] = []
        for name, conditioner in self.parts.items():
            if negative and name in used and conditioner.key in negative and drop[name].all():
                given = conditioner({**batch, "encoded": {}, **negative}, ~drop[name])
            else:
                given = conditioner(batch, drop[name])
            bias = given.get("tokens_bias")
            given = {key: value for key, value in given.items() if key != "tokens_bias"}
            if "tokens" in given:
                given = {"tokens_mask": _all_real(given["tokens"]), **given}
                added = (bias, asked.get(name), painted.get(name))
                biases.append((given["tokens"], bias_of(name, given["tokens"], drop[name], *added)))
            for key, value in given.items():
                parts.setdefault(key, []).append(value)
        if any(bias is not None and bool(bias.any()) for _, bias in biases):
            parts["tokens_bias"] = filled(biases)
        along = {"vector": -1, "tokens": 1, "tokens_bias": 1, "concat": 1}
        masks = parts.pop("tokens_mask", None)
        merged = {key: torch.cat(values, dim=along[key]) for key, values in parts.items()}
        return merged if masks is None else {**merged, "tokens_mask": joined_masks(masks)}

    def kept(self, images: Tensor, batch: Batch, use: Collection[str] | None = None) -> Tensor:
        """Samples [B, 3, H, W] in [-1, 1] with the pixels that a condition `used` gives, bit for bit."""
        for part in self.used(use).values():
            images = images if part.lacks(batch) else part.kept(images, batch)
        return images


def _check_widths(parts: Mapping[str, Conditioner]) -> None:
    """Raises ValueError for tokens of different widths, naming the keys that make them the narrowest encoder's."""
    if len({part.widths["tokens"] for part in parts.values()}) <= 1:
        return
    fixed = [part.widths["tokens"] for part in parts.values() if part.frozen is not None]
    width = min(fixed or [part.widths["tokens"] for part in parts.values()])
    ways = [f"conditioner.{name}.width={width}" for name, part in parts.items() if part.widths["tokens"] != width]
    named = ", ".join(f"{name} has {part.widths['tokens']}" for name, part in parts.items())
    raise UserError(
        f"conditioner: tokens are joined along their length and must be of equal width; {named}: set {' '.join(ways)}"
    )


def _all_real(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def field(batch: Batch, key: str, asked_by: str) -> Any:
    """A field of the batch. Raises ValueError naming the conditioner that asks for a missing one."""
    if key not in batch:
        raise UserError(f"conditioner {asked_by} needs {key!r} in every sample; the batch has {', '.join(batch)}")
    return batch[key]


def check_network(network: nn.Module, conditioners: Conditioners) -> None:
    """Raise ValueError if the network's forward does not declare the keyword of a condition, naming both."""
    declared = inspect.signature(network.forward).parameters
    for name, conditioner in conditioners.parts.items():
        needed = [*conditioner.widths, *(["tokens_mask"] if "tokens" in conditioner.widths else [])]
        missing = [key for key in needed if key not in declared]
        if missing:
            raise UserError(
                f"conditioner.{name} gives {' and '.join(missing)}, which network {type(network).__name__} "
                "does not take: leave the conditioner out or choose another network"
            )
