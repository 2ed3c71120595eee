"""Acceptance of drafts: position-indexed traces, fitted models, plain rates, and their names as text."""

import sys

from simulator import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
