"""The conditions of a model: fields of a call -> keyword arguments of its network, and channels added to its input."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class Part(nn.Module):
    """One condition: forward(given, num, size) -> {slot: tensor}; `given` None is its null, what training saw for
    a dropped one; `num` samples, `size` [h, w] of the latent.
    """


class Text(Part):
    """Encoded texts (tokens [B, N, D], mask [B, N]): the tokens, their mean as a vector, or both."""

    def __init__(self, slots, encoder_width, max_tokens, width=None):
        super().__init__()
        self.slots = slots
        self.null = (max_tokens, encoder_width)
        self.project = nn.Linear(encoder_width, width, bias=False) if width else nn.Identity()

    def forward(self, given, num, size):
        tokens, mask = given or (torch.zeros(num, *self.null), torch.ones(num, self.null[0], dtype=torch.bool))
        filled = {}
        if "tokens" in self.slots:
            weight = getattr(self.project, "weight", tokens)
            filled |= {"tokens": self.project(tokens.to(weight)), "mask": mask.to(weight.device)}
        if "vector" in self.slots:
            mean = tokens.sum(1) / mask.sum(1, keepdim=True)
            filled["vector"] = F.layer_norm(mean, mean.shape[-1:])
        return filled


class Label(Part):
    """Numbers of classes [B]: a row of the table each; the last one is the null."""

    def __init__(self, rows, width, slot):
        super().__init__()
        self.slot = slot
        self.embedding = nn.Embedding(rows, width)

    def forward(self, given, num, size):
        label = torch.full((num,), self.embedding.num_embeddings - 1) if given is None else torch.as_tensor(given)
        rows = self.embedding(label.to(self.embedding.weight.device))
        return {self.slot: rows[:, None] if self.slot == "tokens" else rows}


class NullToken(Part):
    """Learned tokens that are always there."""

    def __init__(self, num_tokens, width):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(num_tokens, width))

    def forward(self, given, num, size):
        return {"tokens": self.tokens.expand(num, -1, -1)}


class Embeddings(Part):
    """Precomputed embeddings, [B, N, D]."""

    def __init__(self, num_tokens, embedding_width, width=None):
        super().__init__()
        self.null = (num_tokens, embedding_width)
        self.project = nn.Linear(embedding_width, width, bias=False) if width else nn.Identity()

    def forward(self, given, num, size):
        tokens = torch.zeros(num, *self.null) if given is None else given
        return {"tokens": self.project(tokens.to(getattr(self.project, "weight", tokens)))}


class Picture(Part):
    """CLIP's embedding of a picture [B, D]: as it is, as one token, or both."""

    def __init__(self, slots, embedding_width, width=None):
        super().__init__()
        self.slots = slots
        self.width = embedding_width
        self.project = nn.Linear(embedding_width, width, bias=False) if width else nn.Identity()

    def forward(self, given, num, size):
        vector = torch.zeros(num, self.width) if given is None else given
        token = self.project(vector[:, None].to(getattr(self.project, "weight", vector)))
        return {slot: {"vector": vector, "tokens": token}[slot] for slot in self.slots}


class Channels(Part):
    """A picture of the latent's size, [B, channels, h, w], beside it: a small one, or an encoded one with its hole."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, given, num, size):
        return {"concat": torch.zeros(num, self.channels, *size) if given is None else given}


class SemanticMap(Part):
    """Maps of class numbers [B, H, W], one-hot, halved and mapped to channels."""

    def __init__(self, num_classes, channels, halvings):
        super().__init__()
        self.halvings = halvings
        self.channel_mapper = nn.Conv2d(num_classes, channels, 1, bias=False)

    def forward(self, given, num, size):
        weight = self.channel_mapper.weight
        if given is None:
            return {"concat": torch.zeros(num, len(weight), *size)}
        maps = F.one_hot(given.to(weight.device), weight.shape[1]).permute(0, 3, 1, 2).to(weight)
        for _ in range(self.halvings):
            maps = F.interpolate(maps, scale_factor=0.5, mode="bilinear")
        return {"concat": self.channel_mapper(maps)}


KINDS = {kind.__name__: kind for kind in (Text, Label, NullToken, Embeddings, Picture, Channels, SemanticMap)}


class LatentConditions(ModelMixin, ConfigMixin):
    """All conditions of a model in their order.

    `conditions`: name -> {"kind", "field" (that it reads), "droppable" (whether training saw it dropped), "arguments"
    (of its class)}; of texts also how they are encoded: "zero_null", "max_tokens", "see_padding".
    """

    @register_to_config
    def __init__(self, conditions):
        super().__init__()
        self.parts = nn.ModuleDict({name: KINDS[c["kind"]](**c["arguments"]) for name, c in conditions.items()})
        self.register_buffer("_where", torch.empty(0), persistent=False)  # follows .to(device, dtype)

    def forward(self, given, num, size):
        """{name: what is given, None for its null} -> keywords of the network, and channels for its input or None."""
        slots = {}
        for name, part in self.parts.items():
            filled = part(given.get(name), num, size)
            if "tokens" in filled and "mask" not in filled:
                filled["mask"] = torch.ones(filled["tokens"].shape[:2], dtype=torch.bool)
            for slot, value in filled.items():
                where = self._where.device if value.dtype == torch.bool else self._where
                slots.setdefault(slot, []).append(value.to(where))
        joined = {slot: torch.cat(values, dim=-1 if slot == "vector" else 1) for slot, values in slots.items()}
        names = {"tokens": "encoder_hidden_states", "mask": "encoder_attention_mask", "vector": "class_labels"}
        return {names[slot]: value for slot, value in joined.items() if slot in names}, joined.get("concat")
