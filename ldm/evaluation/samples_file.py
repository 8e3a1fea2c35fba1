"""The samples of one point as a file for other evaluators: `arr_0` uint8 [N, H, W, 3] of an .npz, in order.

They lie on disk while they are drawn, so that any number of them takes no memory; all ranks draw a share each.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.npz import write_images
from ldm.images import to_uint8
from ldm.spool import Spool, merged


def samples_file(npz: str | None, identities: Sequence[str], rank: int = 0) -> "SamplesFile | None":
    """What `npz=` asks for, None without it. Raises ValueError unless there is one point, each of an identity."""
    if npz is None:
        return None
    if len(identities) != 1:
        raise UserError(
            f"npz={npz}: has the samples of one point, and {len(identities)} are asked for; name one guidance.scale, "
            "and no list of anything else"
        )
    return SamplesFile(Path(npz).expanduser(), identities[0], rank)


class SamplesFile:
    """`npz=FILE` of an evaluation: what is drawn for a point of this `identity`, or the file that has it already.

    Raises ValueError, before anything is drawn, for a file of something else.
    """

    def __init__(self, path: Path, identity: str, rank: int = 0):
        self.path, self.identity, self.rank = path, identity, rank
        self.there = rank == 0 and self._is_there()  # rank 0 alone may see the folder
        self._drawn: Spool | None = None

    def _is_there(self) -> bool:
        if not self.path.exists():
            return False
        try:
            with zipfile.ZipFile(self.path) as archive:
                known = archive.comment.decode(errors="replace")
        except (zipfile.BadZipFile, IsADirectoryError):
            known = ""
        if known != self.identity:
            raise UserError(
                f"npz={self.path}: there is a file already, and not of this evaluation; remove it, or give another name"
            )
        return True

    def add(self, images: Tensor) -> None:
        """Take the next images [B, 3, H, W] in [-1, 1] of this rank. Raises ValueError for some that are not finite."""
        if not images.isfinite().all():
            raise UserError(
                f"npz={self.path}: some samples are not finite, and no picture; without npz= they are counted and left "
                "out of the metrics"
            )
        if self._drawn is None:
            self._drawn = Spool(self.path.absolute().parent)
        self._drawn.add(to_uint8(images).permute(0, 2, 3, 1))

    def write(self) -> None:
        """Put the images of all ranks, which call this together, into the file; rank 0 writes."""
        every = merged(self._drawn)
        if self.rank == 0:
            write_images(self.path, every.blocks(), tuple(every.whole().shape), self.identity)
            print(f"samples in {self.path}", flush=True)
        self._drawn = None
