"""A cascade: one drawer makes a small picture, and super-resolution models enlarge it, stage after stage."""
