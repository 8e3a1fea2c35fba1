"""Judging models: metrics and curves over whatever draws."""
