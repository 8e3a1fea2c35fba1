"""FSDP: every rank keeps its rows of what is trained, and sees a block's weights whole only while it computes with it.

Torch's ``fully_shard`` in place of DDP's wrapper, under Lightning's own launching, process groups and precision.
Gradients, the optimizer's state and the averages are sharded as the weights are. Rank zero builds the network in its
CPU's memory, the others without memory, and all cut it block by block, with rank zero's weights: a device holds one
block whole at a time, never the model, and so does the CPU's memory of all ranks but one.
"""

from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils import swap_tensors

from ldm.checkpoint.rows import is_sharded
from ldm.errors import UserError
from ldm.networks.compiling import blocks_of


class FullySharded(DDPStrategy):
    """Lightning's DDP strategy, which shards the task's weights where DDP would wrap the task."""

    strategy_name = "fsdp"

    def model_to_device(self) -> None:
        """Nothing yet: what is trained comes block by block as it is cut, and all else after it."""

    def configure_ddp(self) -> None:
        """Cut the task's weights, rank zero's, into rows; the optimizer is made of those afterwards."""
        low = torch.bfloat16 if self.lightning_module.trainer.precision == "bf16-mixed" else None
        trained = self.lightning_module.trained
        shard(trained, self.root_device, low)
        super().model_to_device()
        share(tensor for tensor in (*trained.parameters(), *trained.buffers()) if not is_sharded(tensor))
        self.lightning_module.on_sharded()

    def teardown(self) -> None:
        """As DDP's, but weights stay on their devices: they are used together until the process ends."""
        module, self._lightning_module = self._lightning_module, None
        self.optimizers = []
        try:
            super().teardown()
        finally:
            self._lightning_module = module


def check_shardable(model: nn.ModuleDict, precision: str) -> None:
    """Raises ValueError if a `model` cannot be sharded, or not in this precision."""
    if "network" not in model:
        raise UserError("trainer.strategy=fsdp: a first stage is trained whole on each device; take ddp")
    if precision == "16-mixed":
        raise UserError("trainer.precision=16-mixed with trainer.strategy=fsdp: take bf16-mixed")


def shard(trained: nn.ModuleDict, device: torch.device, gathered: torch.dtype | None = None) -> None:
    """Shard each child of `trained` in place onto the ranks' devices, block by block, with rank zero's weights.

    The blocks of a network are what its lists hold. A network's weights are `gathered` in that type, by default their
    own; all gradients are reduced in fp32.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for name, child in trained.named_children():
        frozen = {parameter for parameter in child.parameters() if not parameter.requires_grad}
        options: dict[str, Any] = {"mesh": mesh, "ignored_params": frozen, "reshard_after_forward": True}
        low = gathered if name == "network" else None
        options["mp_policy"] = MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False)
        for block in blocks_of(child):
            if any(parameter.requires_grad for parameter in block.parameters()):
                _bring(block, device)
                fully_shard(block, **options)
        if any(parameter.requires_grad for parameter in child.parameters()):
            _bring(child, device)
            fully_shard(child, **options)
        for tensor in (*child.parameters(), *child.buffers()):  # what is not trained
            _allocate(tensor, device)


def _bring(module: nn.Module, device: torch.device) -> None:
    """What `module` trains and nobody has cut yet, on `device`, as it is on rank zero."""
    for parameter in module.parameters():
        if parameter.requires_grad and not is_sharded(parameter):
            _allocate(parameter, device)
            parameter.data = parameter.data.to(device).contiguous()
            broadcast(parameter.data, src=0)


def _allocate(tensor: Tensor, device: torch.device) -> None:
    """Memory for a tensor that has none, in place and so in all places that hold it; its values are any."""
    if tensor.is_meta:
        own = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        parameter = isinstance(tensor, nn.Parameter)
        swap_tensors(tensor, nn.Parameter(own, tensor.requires_grad) if parameter else own)


def share(tensors: Iterable[Tensor]) -> None:
    """Give all ranks rank zero's values of `tensors`, in place."""
    for tensor in tensors:
        if tensor.numel():
            values = tensor.detach().contiguous()
            broadcast(values, src=0)
            tensor.data.copy_(values)
