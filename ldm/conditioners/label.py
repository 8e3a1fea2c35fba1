"""Class labels as a learned embedding."""

from torch import Tensor, nn

from ldm.conditioners.base import CHECKED, Batch, Conditioner, field
from ldm.conditioners.classes import check_classes
from ldm.errors import UserError


class Label(Conditioner):
    """batch["label"] [B] in [0, num_classes) -> a vector [B, width], or one token [B, 1, width].

    The last row of the embedding is the null; without `has_null` there is none, and labels can be neither dropped nor
    guided. One token of width 512 is how the published ImageNet models see a class.
    """

    key = "label"

    def __init__(
        self, num_classes: int, width: int = 512, slot: str = "tokens", drop_prob: float = 0.1, has_null: bool = True
    ):
        super().__init__({slot: width}, drop_prob, num_tokens=int(slot == "tokens"))
        if drop_prob and not has_null:
            raise UserError(f"conditioner.label.drop_prob={drop_prob}: without has_null no label can be dropped")
        self.has_null = has_null
        shapes = {"vector": (width,), "tokens": (1, width)}
        if slot not in shapes:
            raise UserError(f"conditioner.label.slot={slot!r}: must be one of {', '.join(shapes)}")
        self.num_classes = num_classes
        self.slot = slot
        self.shape = shapes[slot]
        self.embedding = nn.Embedding(num_classes + has_null, width)

    def check_values(self, batch: Batch) -> None:
        check_classes(batch[self.key], self.num_classes, "label", "conditioner.label.num_classes")

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        if not self.has_null and drop.any():
            raise UserError("conditioner.label has no null (has_null=false): sample with guidance.scale=1")
        label = drop.long() * self.num_classes
        if not drop.all():
            given = field(batch, self.key, "label").to(drop.device)
            if CHECKED not in batch:
                self.check_values(batch)
            label = given.where(~drop, label)
        return {self.slot: self.embedding(label).view(-1, *self.shape)}
