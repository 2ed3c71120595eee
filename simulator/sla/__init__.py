"""Service levels: terms as text, what a run delivered, and whether it kept them."""

import sys

from simulator import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
