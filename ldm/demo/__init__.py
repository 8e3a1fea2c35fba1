"""The page on which models are tried: inputs of their fields, the settings of sample.py, pictures with recipes."""
