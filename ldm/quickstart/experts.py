"""Whether the quickstart's experts paid for their steps, each in its interval and all together over all noise.

Each is held against its parent and a control.

The control is the parent, trained on over all of the noise for as many samples as the experts together, with their
learning rate, batch size and a new optimizer.
"""

from pathlib import Path
from typing import Any

from ldm.checkpoint.weights import load as load_weights
from ldm.diffusion.experts import Expert
from ldm.evaluation.interval_loss import NUM_LEVELS, gain, held_out, interval_loss
from ldm.files import read_json, write_json
from ldm.loading import load

NUM_IMAGES = 192  # held out; 16 levels of them, six times, take two CPU cores 12 s in bf16


def measure_experts(
    base: Path, experts: list[Path], control: Path, ensemble: Path, kept: Path, seed: int
) -> dict[str, Any]:
    """A row for each expert and one for the `ensemble`, whose node is None, in the JSON file `kept`.

    What is there for these weights is returned as it is.
    """
    weights = [load_weights(run).digest for run in (base, *experts, control)]
    if kept.exists() and (found := read_json(kept))["weights"] == weights:
        return found
    parent, trained_on = load(base), load(control)
    seen = held_out(parent, parent.parts["data"], seed, min(NUM_IMAGES, parent.parts["data"].num_validation))
    rows = []
    for path in (*experts, ensemble):
        model = load(path)
        expert = Expert() if path == ensemble else model.parts["expert"]
        noise = expert.restrict(parent.parts["noise"])
        of, *others = (interval_loss(model, seen, noise, seed) for model in (model, parent, trained_on))
        parent_gain, control_gain = (gain(of, over, seen.captions) for over in others)
        rows.append(
            {
                "node": None if path == ensemble else list(expert.node),
                "sigma": list(expert.intervals(parent.parts["noise"])[0]),
                "parent": parent_gain,
                "control": control_gain,
            }
        )
    content = {"weights": weights, "images": len(seen.captions), "levels": NUM_LEVELS, "experts": rows}
    write_json(kept, content)
    return content
