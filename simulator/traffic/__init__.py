"""Requests: their lengths, their arrivals, recorded files, and how text names them."""

import sys

from simulator import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
