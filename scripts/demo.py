"""A page in the browser on which models are tried: what they are conditioned on as inputs, pictures with their recipes.

    python scripts/demo.py model=runs/quickstart-diffusion
    python scripts/demo.py model=[runs/quickstart-diffusion,runs/ensemble.yaml] port=8000

Each model has a tab. The page is for who reaches host= and port=, this machine alone unless host= says more.
Needs gradio, an extra: pip install 'ldm-trainer[demo]', or pip install '.[demo]' in a checkout.
"""

from importlib.util import find_spec

from ldm.asked import check_there, named_models
from ldm.config import compose, guarded, helped
from ldm.errors import UserError
from ldm.installed import IN_CHECKOUT


def main(arguments: list[str]) -> int:
    """Load the models and serve the page until interrupted."""
    if helped("demo", __doc__, arguments):
        return 0
    tree = compose("demo", arguments)
    if find_spec("gradio") is None:
        extra = "'.[demo]'" if IN_CHECKOUT else "'ldm-trainer[demo]'"
        raise UserError(f"the page needs gradio, which is not installed: pip install {extra}")
    check_there(tree)
    asked = named_models(tree["model"])
    paths = asked if isinstance(asked, list) else [asked]
    if not paths:
        raise UserError("model=[]: names no model")
    from ldm.demo.page import Shown, page, serve
    from ldm.device import choose, keep_memory
    from ldm.loading import averages, check_draws, load_drawer, residencies

    device = choose(tree["device"])
    if device.type == "cpu":
        keep_memory()
    for path in paths:
        check_draws(path)
    residency, averaged = residencies(paths, tree["residency"]), averages(paths, tree["ema"])
    models: list[Shown] = []
    for path in paths:
        drawer = load_drawer(path, None, averaged[path], residency[path]).to(device)
        drawer = drawer.tuned(tree["compile"], tree["precision"])
        taken = any(shown.name == drawer.name for shown in models)
        models.append(Shown(path, path if taken else drawer.name, averaged[path], drawer))
    serve(page(models, tree, device), tree)
    return 0


if __name__ == "__main__":
    guarded(main)
