"""The report a user looks at before reading: images (tensor -> PNG), plots (numbers -> PNG), page (both -> index.html).

Inputs are plain data (paths, numbers, tensors, text); nothing here knows how they were made.
"""
