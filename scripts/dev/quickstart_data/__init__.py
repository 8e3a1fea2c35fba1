"""Parts of scripts/dev/make_quickstart_data.py."""
