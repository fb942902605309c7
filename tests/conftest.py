"""Settings every test shares."""

from hypothesis import HealthCheck, settings

# The machine may be busy; how long an example takes says nothing about the code.
settings.register_profile("tidegate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tidegate")
