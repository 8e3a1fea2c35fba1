"""Classes of one data set as those of another, by their names: COCO's objects in a model of OpenImages' boxes."""

from collections.abc import Sequence

# COCO's names of what OpenImages calls otherwise; all other names of COCO are OpenImages' too but for capital letters.
OPEN_IMAGES = {
    "cow": "cattle", "frisbee": "flying disc", "skis": "ski", "sports ball": "ball", "cup": "coffee cup",
    "donut": "doughnut", "potted plant": "houseplant", "dining table": "kitchen & dining room table",
    "tv": "television", "mouse": "computer mouse", "remote": "remote control", "keyboard": "computer keyboard",
    "cell phone": "mobile phone", "microwave": "microwave oven", "hair drier": "hair dryer",
}  # fmt: skip


def matched(own: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """Of each name in `own` the place in `others` of the same name, or of OpenImages' for it; None where there is none.

    Capital letters do not count.
    """
    places = {name.strip().lower(): place for place, name in reversed(list(enumerate(others)))}
    keys = [name.strip().lower() for name in own]
    return [places.get(key, places.get(OPEN_IMAGES.get(key, ""))) for key in keys]
