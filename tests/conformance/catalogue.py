"""All checks, in the order of the requirements."""

from __future__ import annotations

# Imported for what they register.
from conformance import (  # noqa: F401
    core,
    extensions,
    http,
    lifespan,
    sturdiness,
    websocket,
    wire,
)
from conformance.checks import CHECKS
from conformance.requirements import REQUIREMENTS

_ORDER = list(REQUIREMENTS)
ALL = sorted(CHECKS, key=lambda check: _ORDER.index(check.number))
