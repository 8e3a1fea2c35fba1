"""Ablations: trainings that differ in one choice each, of equal time on equal latents, and a loop of others beside."""
