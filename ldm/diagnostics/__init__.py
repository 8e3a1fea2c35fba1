"""What eDiff-I shows of its models (arXiv 2211.01324), as jobs on any that fit: attention, prompts, encoders."""
