"""For all tests: on cores that others use as well, an example may take long; the tiers have budgets instead."""

from hypothesis import settings

settings.register_profile("murmura", deadline=None)
settings.load_profile("murmura")
