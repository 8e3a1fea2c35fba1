"""The text transformer computes what its published description says."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.networks.text_transformer import TextTransformer


def reference(state: dict[str, Tensor], ids: Tensor, depth: int) -> Tensor:
    """Pre-norm attention and feed-forward written out, from the published names."""
    x = state["token_emb.weight"][ids] + state["pos_emb.emb.weight"][: ids.shape[1]]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    for place in range(depth):
        name = f"attn_layers.layers.{2 * place}"
        h = norm(x, f"{name}.0")
        q, k, v = (
            (h @ state[f"{name}.1.to_{part}.weight"].T).reshape(*h.shape[:2], 8, 64).permute(0, 2, 1, 3)
            for part in "qkv"
        )
        weights = (q @ k.transpose(-1, -2) / 8).softmax(-1)
        h = (weights @ v).permute(0, 2, 1, 3).reshape(*h.shape[:2], 512)
        x = x + h @ state[f"{name}.1.to_out.weight"].T + state[f"{name}.1.to_out.bias"]
        name = f"attn_layers.layers.{2 * place + 1}"
        h = norm(x, f"{name}.0") @ state[f"{name}.1.net.0.0.weight"].T + state[f"{name}.1.net.0.0.bias"]
        x = x + F.gelu(h) @ state[f"{name}.1.net.2.weight"].T + state[f"{name}.1.net.2.bias"]
    return norm(x, "norm")


def test_it_is_the_published_transformer():
    torch.manual_seed(0)
    network = TextTransformer(vocabulary=40, max_tokens=9, width=24, depth=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, 40, (3, 7))
    torch.testing.assert_close(network(ids), reference(network.state_dict(), ids, 2), rtol=1e-4, atol=1e-4)


def test_every_token_sees_every_other():
    torch.manual_seed(0)
    network = TextTransformer(vocabulary=40, max_tokens=9, width=24, depth=1)
    ids = torch.randint(0, 39, (1, 9))
    changed = ids.clone()
    changed[0, 8] = 39
    assert (network(ids) != network(changed)).any(-1).all()
