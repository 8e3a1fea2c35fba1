"""The measurements of scripts/dev/gpu_check.py: one file each, `measure(device, size, out, ...) -> rows`."""
