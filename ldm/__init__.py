"""Latent diffusion: autoencoders, diffusion models in their latent space, and expert denoisers."""
