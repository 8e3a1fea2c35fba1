"""A user's mistake, as all of this package raises it; data, which imports nothing from here, raises the same."""

from ldm.data.user_error import UserError

__all__ = ["UserError"]
