"""The mathematics of diffusion on tensors; imports torch and the standard library only."""
