"""Trees of expert denoisers (eDiff-I, arXiv:2211.01324, section 4.1): grown by a schedule, and where to cut."""
