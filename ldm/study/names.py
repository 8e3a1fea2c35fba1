"""The files of a suite and of a study."""

INDEX = "suite.json"  # a suite's prompts and scores
KEY = "key.json"  # a study's truth


def file_name(place: int, number: int) -> str:
    """The file of picture `number` of the prompt at `place`."""
    return f"{place:04d}-{number}.png"
