"""Requests: lengths, arrivals, recorded files, and their forms as text."""

import sys

from simulator import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
