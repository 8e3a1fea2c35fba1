"""What a batch holds beside its image: each field reads a member of the sample, or is made of the
image, and becomes one key of the batch.
"""

from ldm.data.fields.caption import Caption
from ldm.data.fields.derived import Derived
from ldm.data.fields.embeddings import Embeddings
from ldm.data.fields.field import Field
from ldm.data.fields.label import Label
from ldm.data.fields.layout import Layout
from ldm.data.fields.mask import Mask
from ldm.data.fields.picture import Picture
from ldm.data.fields.semantic_map import SemanticMap

__all__ = ["Caption", "Derived", "Embeddings", "Field", "Label", "Layout", "Mask", "Picture", "SemanticMap"]
