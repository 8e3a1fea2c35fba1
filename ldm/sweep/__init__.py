"""Sweeps over the first stage: codecs compared, and what each f costs and gives."""
