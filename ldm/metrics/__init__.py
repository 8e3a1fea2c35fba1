"""Measures of images: distances of feature sets, reconstruction errors, agreement with captions; backbones named."""
