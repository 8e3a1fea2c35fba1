"""One judge a task: what its samples, drawn from files, are worth on held-out conditions."""

from collections.abc import Callable, Mapping

from ldm.tasks.bench import Bench, Judgement
from ldm.tasks.judges.classes import judge_classes
from ldm.tasks.judges.image_to_image import judge_image_to_image
from ldm.tasks.judges.inpainting import judge_inpainting
from ldm.tasks.judges.layout import judge_layout
from ldm.tasks.judges.painting import judge_painting
from ldm.tasks.judges.semantic_map import judge_semantic_map
from ldm.tasks.judges.superres import judge_degraded, judge_superres
from ldm.tasks.judges.text import judge_text
from ldm.tasks.judges.unconditional import judge_unconditional

JUDGES: Mapping[str, Callable[[Bench], Judgement]] = {
    "unconditional": judge_unconditional,
    "class_emoji": judge_classes,
    "class_fashion": judge_classes,
    "text": judge_text,
    "layout": judge_layout,
    "painting": judge_painting,
    "semantic_map": judge_semantic_map,
    "superres_x2": judge_superres,
    "superres_x4": judge_superres,
    "superres_x4_bsr": judge_degraded,
    "inpainting": judge_inpainting,
    "image_to_image": judge_image_to_image,
}

# Raised by who changes what a judge says of the same images: rows of another version are not those of the report.
VERSIONS = dict.fromkeys(JUDGES, 1) | {"painting": 3}
