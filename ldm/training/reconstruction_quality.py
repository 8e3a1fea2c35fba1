"""The quality of a first stage while it trains: its reconstructions of held-out images, as evaluate.py does."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.measuring import FEWEST, Ranks, Row, in_order, in_rounds
from ldm.metrics.reconstruction import ERRORS
from ldm.metrics.reconstruction_quality import Reconstructions, reconstruction_quality
from ldm.networks.downloads import locate
from ldm.networks.lpips import LPIPS, TRUNKS, pretrained_lpips
from ldm.training.distributed import collect, together
from ldm.training.judged import Asked, Judged

log = logging.getLogger(__name__)
NET = "alex"  # of LPIPS, as published for measuring


class ReconstructionQuality(Judged):
    """`reconstruct` takes images [B, 3, H, W] in [-1, 1] to their reconstructions; of the first held-out images."""

    def __init__(self, asked: Asked, reconstruct: Callable[[Tensor], Tensor]):
        self.asked = asked
        self.reconstruct = reconstruct
        self._lpips: LPIPS | None = None

    @property
    def num_images(self) -> int:
        """How many are measured."""
        return min(self.asked.num_samples, self.asked.data.num_validation)

    def lacks(self) -> str | None:
        data, networks = self.asked.data, self.asked.networks
        if self.asked.scales is not None:
            raise UserError("callback.quality.scales: nothing guides a first stage; leave it null")
        if data.num_validation < FEWEST:
            return f"data.validation has {data.num_validation} images, and {FEWEST} are needed"
        networks.check(captioned=False)
        if networks.lacks_backbone is None and (why := self._lacks_lpips()):
            log.warning("callback.quality leaves out LPIPS: %s", why)
        return networks.lacks_backbone

    def _lacks_lpips(self) -> str | None:
        """Why there is no LPIPS: images are too small for it, or it was not fetched."""
        size, smallest = self.asked.data.framing.window, TRUNKS[NET][-1]
        if size < smallest:
            return f"it needs images of {smallest} px, and these have {size}"
        try:
            locate(f"lpips_{NET}")
        except UserError as error:
            return str(error)
        return None

    @property
    def names(self) -> tuple[str, ...]:
        backbone = self.asked.networks.backbone()
        lpips = () if self._lacks_lpips() else (f"lpips_{NET}",)
        sets = (f"{metric}/{backbone.name}" for metric in (f"r{backbone.frechet}", "rkid", "is"))
        return (*ERRORS, *lpips, *sets)

    def prepare(self, ranks: Ranks) -> None:
        """Nothing: what is measured are pairs."""

    def measure(self, ranks: Ranks) -> Row:
        asked = self.asked
        rows, numbers, broken, seconds = [], [], [], 0.0
        loader = asked.data.validation_loader(ranks.rank, ranks.world_size, asked.batch_size, self.num_images)
        networks = asked.networks.on(ranks.device, False, asked.keep_networks)
        with networks as (backbone, _), self._distances(ranks.device) as distances:
            looking = Reconstructions(backbone, distances)
            for batch, own in in_rounds(loader, ranks):
                with together():
                    image, began = batch["image"].to(ranks.device), time.monotonic()
                    output = self.reconstruct(image).float()
                    finite = output.isfinite().flatten(1).all(1).cpu()
                    seconds += time.monotonic() - began
                    with torch.autocast(ranks.device.type, enabled=False):
                        found = looking.look_at(image, output).cpu()
                if own:
                    rows.append(found)
                    numbers.append(batch["index"])
                    broken += batch["index"][~finite].tolist()
                    ranks.advance(len(image))
        lost = [number for own in collect(broken) for number in own]
        every = in_order(torch.cat([looking.none(), *rows]), torch.cat([torch.empty(0, dtype=torch.int64), *numbers]))
        if ranks.rank:
            return {}
        row = {"nan_images": float(len(lost)), "samples_per_second": self.num_images / max(seconds, 1e-9)}
        if lost:
            log.warning("quality: %d reconstructions are not finite, so there are no metrics of this step", len(lost))
            return row
        quality = reconstruction_quality(looking.found(every), backbone, asked.seed)
        return {**row, **{name: one.value for name, one in quality.items()}}

    @contextmanager
    def _distances(self, device: torch.device) -> Iterator[dict[str, LPIPS]]:
        """LPIPS, if there is one, on `device` within the block; after it as `keep_networks` says."""
        if self._lacks_lpips():
            yield {}
            return
        own = self._lpips or pretrained_lpips(NET)
        try:
            yield {own.name: own.to(device)}
        finally:
            self._lpips = own.cpu() if self.asked.keep_networks else None
