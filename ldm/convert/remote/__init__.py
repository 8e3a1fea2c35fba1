"""Code that travels with an exported folder: each file is copied beside the weights it is for, and stands alone.

They import torch and diffusers only, and nothing here imports them. Their numbers are held against ours by the tests.
"""
