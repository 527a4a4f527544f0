"""A module that doesn't import."""

import nowhere_to_be_found  # noqa: F401
