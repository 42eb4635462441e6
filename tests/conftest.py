"""What every test shares: Hypothesis draws the same examples each time, with no clock on them."""

from hypothesis import settings

settings.register_profile("same-every-time", derandomize=True, database=None, deadline=None)
settings.load_profile("same-every-time")
