"""What a batch holds beside its image: each field reads a member of the sample, or is made of the
image, and becomes one key of the batch.
"""

from data.fields.caption import Caption
from data.fields.derived import Derived
from data.fields.embeddings import Embeddings
from data.fields.field import Field
from data.fields.label import Label
from data.fields.layout import Layout
from data.fields.mask import Mask
from data.fields.picture import Picture
from data.fields.semantic_map import SemanticMap

__all__ = ["Caption", "Derived", "Embeddings", "Field", "Label", "Layout", "Mask", "Picture", "SemanticMap"]
