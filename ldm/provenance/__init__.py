"""Recipes of pictures: written with them, read back as data of anyone, and followed again."""
