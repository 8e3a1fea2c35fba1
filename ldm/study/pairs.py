"""Which pairs of pictures a study shows: of each task equally often every pairing of models in every category.

Drawn from a seed alone. A prompt comes again only when all others of its category have been there, in any task.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle

from ldm.errors import UserError
from ldm.study.prompt_set import REAL, Prompt, categories

# What people are asked; of `real` one picture of each pair is real, of the others any two may meet.
TASKS = {
    "real": "Which picture is real, and not made by a model?",
    "better": "Which picture is better?",
    "text": "Which picture follows the text better?",
}


@dataclass(frozen=True)
class Shown:
    """A picture of a pair: picture `number` of a prompt by `model`, which may be real."""

    model: str
    number: int


@dataclass(frozen=True)
class Pair:
    """Two pictures of the prompt at `place` under the question of `task`."""

    task: str
    place: int
    left: Shown
    right: Shown


def contests(task: str, models: Sequence[str]) -> list[tuple[str, str]]:
    """The pairings of a task. Raises UserError if there are none among `models`."""
    if task not in TASKS:
        raise UserError(f"tasks: no task {task!r}; there are {', '.join(TASKS)}")
    if task == "real":
        if REAL not in models:
            raise UserError("tasks: 'real' needs real pictures, which the prompts of this suite do not have")
        found = [(REAL, model) for model in models if model != REAL]
    else:
        found = list(combinations(models, 2))
    if not found:
        raise UserError(f"tasks: {task!r} needs two to compare, and models= names {', '.join(models)} alone")
    return found


def planned(
    prompts: Sequence[Prompt], counts: Mapping[str, int], tasks: Sequence[str], num_pairs: int, seed: int
) -> list[Pair]:
    """`num_pairs` of each task, all in the order in which they are shown; `counts` {model: pictures of a prompt}.

    Raises UserError for a task that there is not, or for more pairs than there are.
    """
    generator = random.Random(seed)
    queues = {name: [n for n, prompt in enumerate(prompts) if prompt.category == name] for name in categories(prompts)}
    for queue in queues.values():
        generator.shuffle(queue)
    turns = dict.fromkeys(queues, 0)  # a task goes on with the prompts where the one before it stopped
    pairs = [pair for task in tasks for pair in _of_task(queues, turns, counts, task, num_pairs, generator)]
    generator.shuffle(pairs)
    return pairs


def _of_task(
    queues: Mapping[str, Sequence[int]], turns: dict[str, int], counts: Mapping[str, int], task: str, num_pairs: int,
    generator: random.Random,
) -> list[Pair]:  # fmt: skip
    """The pairs of one task, in turn from each of the `queues` {category: places of prompts}, whose `turns` go on."""
    against, own = contests(task, list(counts)), list(queues)
    most = len(against) * sum(map(len, queues.values()))
    if not 0 < num_pairs <= most:
        raise UserError(f"num_pairs={num_pairs}: these prompts and models give {most} pairs of {task!r} at most")
    generator.shuffle(own)
    swapped = [bool(place % 2) for place in range(num_pairs)]
    generator.shuffle(swapped)
    used = dict.fromkeys(own, 0)
    pairs: list[Pair] = []
    for column, name in cycle(enumerate(own)):
        if len(pairs) == num_pairs:
            break
        if used[name] == len(queues[name]) * len(against):
            continue
        again, place = divmod(turns[name], len(queues[name]))
        used[name] += 1
        turns[name] += 1
        # A prompt that comes again comes with the next pairing: no pair is there twice.
        shown = [
            Shown(model, generator.randrange(counts[model]))
            for model in against[(place + again + column) % len(against)]
        ]
        left, right = reversed(shown) if swapped[len(pairs)] else shown
        pairs.append(Pair(task, queues[name][place], left, right))
    return pairs
