"""What an experiment's YAML says, as a digest: whether what was measured of it is still what it describes."""

import hashlib
import json
from typing import Any

import yaml

from ldm.config.plugins import folders
from ldm.errors import UserError


def recipe_of(experiment: str) -> str:
    """A digest of what conf/experiment/`experiment`.yaml says, and those that it begins with; not of comments.

    Raises UserError for one that is not there.
    """
    return hashlib.sha256(json.dumps(_said(f"/experiment/{experiment}"), sort_keys=True).encode()).hexdigest()[:8]


def _said(experiment: str) -> list[dict[str, Any]]:
    places = [folder / f"{experiment.lstrip('/')}.yaml" for folder in folders()]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"experiment={experiment.removeprefix('/experiment/')}: no such experiment")
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    before = [entry for entry in tree["defaults"] if isinstance(entry, str) and entry.startswith("/experiment/")]
    return [*(said for entry in before for said in _said(entry)), tree]
