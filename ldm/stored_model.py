"""A model whose weights are in their file while nothing asks it, and in memory while something does."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint.pieces import pieces
from ldm.device import give_memory_back
from ldm.errors import UserError
from ldm.model import Model, lower_denoiser
from ldm.networks.precision import Precision, low_dtype

BLOCK = 1 << 20  # bytes that are read ahead at a time
Loaded = dict[str, Tensor]


class Stored:
    """A model whose weights come into it from their file and go again; meanwhile they are NaN, of no memory."""

    def __init__(self, model: Model):
        self.network = model.denoiser.network
        self._model = nn.ModuleDict({"denoiser": model.denoiser, "conditioner": model.conditioner})
        named = nn.ModuleDict({"network": self.network, "conditioner": model.conditioner})
        self._own = named.state_dict(keep_vars=True)
        self._weights = replace(model.weights[0], state={})
        self._seen = _stamp(self._weights.path)
        self.nbytes = 0
        self.leave(torch.device("cpu"))
        shapes = {name: tensor.detach() for name, tensor in self._own.items()}
        self.model = replace(model, weights=[replace(self._weights, state=shapes)])

    def leave(self, device: torch.device) -> None:
        """Give up the memory of the weights. All else is on `device`."""
        kinds = {tensor.dtype for tensor in self._own.values()}
        nothing = {kind: _nothing(kind, device) for kind in kinds}
        for tensor in self._own.values():
            tensor.data = nothing[tensor.dtype].expand(tensor.shape)
        stored = {id(tensor) for tensor in self._own.values()}
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            if id(tensor) not in stored:
                tensor.data = tensor.data.to(device)
        self.nbytes = 0
        give_memory_back()

    def come(self, device: torch.device, state: Loaded | None) -> None:
        """Take the weights, from `state` or else from their file. Raises UserError if that was changed."""
        self._check()
        for name, tensor in state.items() if state else pieces(self._weights):
            own = self._own[name]
            own.data = tensor.to(device, own.dtype, non_blocking=True, copy=True)
        self.nbytes = sum(tensor.nbytes for tensor in self._own.values())

    def lower(self, precision: Precision, device: torch.device) -> bool:
        """Take the weights in this precision from now on. Whether that is another than theirs: those that are there
        have left then, and all else is on `device`.
        """
        lower_denoiser(self.model.denoiser, precision, device)
        if low_dtype(precision) is None:
            return False
        self.leave(device)
        return True

    def pinned(self, device: torch.device) -> Loaded:
        """The weights in memory that a GPU copies from by itself."""
        self._check()
        with torch.cuda.device(device):  # of this thread, which else asks the first one for it
            return {name: tensor.pin_memory() for name, tensor in pieces(self._weights)}

    def cached(self) -> None:
        """Have the system read the file into its cache."""
        block = bytearray(BLOCK)
        with self._weights.path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass

    def _check(self) -> None:
        if _stamp(self._weights.path) != self._seen:
            raise UserError(f"{self._weights.path}: was changed since the ensemble was loaded; load it again")


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """NaN, so that what is evaluated without its weights is seen; 0 of what has no NaN."""
    return torch.full((), torch.nan if dtype.is_floating_point or dtype.is_complex else 0, dtype=dtype, device=device)
