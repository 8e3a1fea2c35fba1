"""Inception score (Salimans et al. 2016): are samples classified with confidence, and into many classes."""

import math

import torch
from torch import Tensor

from ldm.errors import UserError


def inception_score(logits: Tensor, num_splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over splits of exp(E KL(p(y|x) || p(y))), for logits [N, classes].

    Samples are split in the order given. Between 1 and the number of classes.
    """
    if len(logits) < num_splits:
        raise UserError(f"num_splits={num_splits} needs as many samples, got {len(logits)}")
    scores = []
    for split in logits.chunk(num_splits):
        part = split.double().log_softmax(1)
        marginal = part.logsumexp(0) - math.log(len(part))
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0))
