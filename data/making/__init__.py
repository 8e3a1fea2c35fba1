"""Turning folders, tables and annotations of images into shards; what training reads is in `data` itself."""
