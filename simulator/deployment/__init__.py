"""A profile, its acceptance and a policy made concrete."""

import sys

from simulator import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
