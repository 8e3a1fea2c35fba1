"""First stages: regularised autoencoders, their latent statistics and the loss that trains them."""
