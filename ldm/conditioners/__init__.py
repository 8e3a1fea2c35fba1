"""Conditioners: from a batch to what the network is told beside the noisy latent."""
