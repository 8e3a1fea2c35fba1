"""Images of captions: the place of a sample's own caption among all captions, as the quickstart's report has it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.evaluation.yardsticks import shared_yardsticks
from ldm.images import grid
from ldm.tasks.bench import FILES, Bench, Judgement, in_batches

SHOWN = 10  # captions on the sheet
SCALE = 3.0  # of guidance, as the quickstart shows


def judge_text(bench: Bench) -> Judgement:
    """Ranks of captions that were trained on, and of held-out ones, with the text and without it."""
    model = bench.model("text")
    by = shared_yardsticks(bench.device)
    shown = []
    for name, batch in {
        "trained": bench.training(model.drawer.data), "held-out": bench.held_out(model.drawer.data)
    }.items():  # fmt: skip
        every = list(dict.fromkeys(batch["caption"]))
        captions = every[: bench.count(most=FILES)]
        given: Sequence[dict[str, Any]] = [{"prompt": caption} for caption in captions]
        images = bench.sample(model, given, guidance=SCALE)
        free = bench.sample(model, [{"prompt": ""}] * len(captions), guidance=1.0)

        def ranks(images: Tensor, captions: list[str] = captions, every: list[str] = every) -> Tensor:
            place = iter(range(len(captions)))
            one = lambda x: by.alignment.rank(x, [captions[next(place)] for _ in x], every)  # noqa: E731
            return in_batches(one, images, bench).double()

        own, without = ranks(images), ranks(free)
        middle = lambda values: values.median()  # noqa: E731
        bench.add_statistic(f"median rank among {len(every)}, {name} captions", own, middle)
        bench.add_statistic(f"median rank among {len(every)}, {name} captions, text dropped", without, middle)
        places = (without - own) / len(every)
        bench.add_mean(f"obeyed: mean rank without less with the text, share of {name} captions", places)
        shown += [images[:SHOWN], free[:SHOWN]]
    caption = f"Rows: {SHOWN} trained captions, the same noise without text; {SHOWN} held-out captions, without text."
    return Judgement(bench.rows, grid(torch.cat(shown), columns=SHOWN), caption)
