"""When the prompt decides: samples whose prompt is another one below a noise level, over that level.

    python scripts/prompt_switch.py model=runs/quickstart-diffusion num_samples=32
    python scripts/prompt_switch.py model=runs/ensemble.yaml prompt="red heart" to_prompt="key" switch=[0.1,0.5,2,10]

eDiff-I's figure 4. Each sample is denoised with prompt A down to the switching sigma and with prompt B below, from the
same noise. switch.csv has its distance to the samples of A alone and of B alone (LPIPS, and grey levels) and the ranks
of both prompts among all that are used, with 95 % intervals; switch.png, ranks.png and sheet.png show them, and
decided.csv says below which sigma, and in which last per cent of the steps, a switch changes nothing any more.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Draw, measure, print a table and what was decided when, and write the figures."""
    if helped("prompt_switch", __doc__, arguments):
        return 0
    tree = compose("prompt_switch", arguments)
    check_there(tree)
    from ldm.diagnostics.prompt_switch import decided, prompt_switch
    from ldm.evaluation.table import show

    rows, folder = prompt_switch(tree, arguments)
    show(rows)
    show([decided(rows)])
    print(f"also in {folder}/, with sheet.png")
    return 0


if __name__ == "__main__":
    guarded(main)
