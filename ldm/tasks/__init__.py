"""The tasks of latent diffusion (arXiv 2112.10752, section 4) as tiny experiments: trained, sampled, judged."""
