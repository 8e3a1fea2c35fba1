"""Classifiers of real pictures by a frozen backbone's features: logistic regression, and the nearest one's class."""

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 60  # of L-BFGS, which is at its end by then


class Probe:
    """Class scores of features, by a linear map of standardised features fitted to `labels` [N] with an L2 penalty."""

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int, penalty: float = 1e-2):
        self.mean, self.std = features.mean(0), features.std(0) + 1e-6
        x = self._standard(features)
        self.weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
        self.bias = torch.zeros(num_classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([self.weight, self.bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(x @ self.weight.T + self.bias, labels) + penalty * self.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """The class [N] of features [N, D]."""
        return (self._standard(features) @ self.weight.T + self.bias).argmax(1)

    def _standard(self, features: Tensor) -> Tensor:
        return (features.float() - self.mean) / self.std


class Nearest:
    """The class of the known features that are nearest, by the cosine of standardised ones: knows each it was given."""

    def __init__(self, features: Tensor, labels: Tensor):
        self.mean, self.std = features.mean(0), features.std(0) + 1e-6
        self.known, self.labels = self._unit(features), labels

    def __call__(self, features: Tensor) -> Tensor:
        """The class [N] of features [N, D]."""
        return self.labels[(self._unit(features) @ self.known.T).argmax(1)]

    def _unit(self, features: Tensor) -> Tensor:
        return F.normalize((features.float() - self.mean) / self.std, dim=1)
