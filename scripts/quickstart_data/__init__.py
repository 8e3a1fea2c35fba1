"""Parts of scripts/make_quickstart_data.py."""
