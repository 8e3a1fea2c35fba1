"""Evaluation of models: metrics and curves of any Drawer."""
