"""The quickstart: its stages, its samples and its report."""
