"""Callbacks, one idea each; all count by the task's own step."""
