"""Classes of one data set as those of another, by their names: COCO's objects in a model of OpenImages' boxes."""

from collections.abc import Sequence

from ldm.data.making.openimages_classes import COCO


def matched(own: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """Of each name in `own` the place in `others` of the same name, or of OpenImages' for it; None where there is none.

    Capital letters do not count.
    """
    places = {name.strip().lower(): place for place, name in reversed(list(enumerate(others)))}
    keys = [name.strip().lower() for name in own]
    return [places.get(key, places.get(COCO.get(key, "").lower())) for key in keys]
