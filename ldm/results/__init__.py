"""Finished parts of long measurements as rows of CSV files, from which the commands go on: results=."""
