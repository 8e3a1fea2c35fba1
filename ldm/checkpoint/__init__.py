"""Checkpoints and weights on disk: resume, branch, foreign formats in, exports out."""
