"""Judging a model: metrics and curves over it, and the report that shows them."""
