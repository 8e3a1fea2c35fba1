"""All that a batch holds besides the image: fields that are read, and those that are made of the image."""

from collections.abc import Collection, Mapping

from ldm.data.fields.derived import Derived
from ldm.data.fields.field import Field
from ldm.data.fields.picture import Picture
from ldm.data.user_error import UserError


class FieldSet:
    """`read` from members or from the image file again, and `derived` from the window, by their keys of the batch."""

    def __init__(
        self, fields: Mapping[str, Field], made: Mapping[str, Field | Derived], reserved: Collection[str] = ()
    ):
        twice = fields.keys() & made.keys()
        if twice:
            raise UserError(f"derived.{min(twice)}: data.fields gives it already; choose one of them")
        for name, where in {**dict.fromkeys(fields, "data.fields"), **dict.fromkeys(made, "derived")}.items():
            if name in reserved:
                raise UserError(f"{where} may not have {name!r}: every batch has it already")
        self.derived: dict[str, Derived] = {name: field for name, field in made.items() if isinstance(field, Derived)}
        self.read: dict[str, Field] = {
            **fields,
            **{name: field for name, field in made.items() if isinstance(field, Field)},
        }

    def replaced(self, made: Mapping[str, Field | Derived]) -> "FieldSet":
        """These, but for the keys of `made`, which are read or made so."""
        every = {**self.read, **self.derived}
        return FieldSet({}, {**every, **made})

    @property
    def yields(self) -> dict[str, str]:
        """What the batch gets under each key, in words."""
        return {name: field.yields for name, field in self.read.items()} | {
            name: field.yields for name, field in self.derived.items()
        }

    @property
    def of_image(self) -> set[str]:
        """The keys that need the image file's pixels, its own among them."""
        return {"image", *self.derived, *(name for name, field in self.read.items() if field.extension is None)}

    @property
    def of_picture(self) -> set[str]:
        """The keys whose values change when the image is mirrored."""
        return {"image", *self.derived, *(name for name, field in self.read.items() if field.lies_on_picture)}

    @property
    def from_image(self) -> list[str]:
        """The keys that sampling computes from an image unless they are given."""
        made = [name for name, field in self.derived.items() if not field.for_training]
        return made + [name for name, field in self.read.items() if field.extension is None]

    def reader(self, name: str) -> Field | None:
        """The field that reads a file given for the key `name` in sampling; None if there is none."""
        if name == "image":
            return Picture()
        if name in self.derived:
            return self.derived[name].given
        own = self.read.get(name)
        return own and (own.given or own)

    def own_pixels(self, name: str) -> dict[str, int]:
        """{"pixels": px} of a key whose pixels have another size than the image, else {}."""
        size = self.read[name].size if name in self.read else None
        return {} if size is None else {"pixels": size}
