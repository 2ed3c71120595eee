"""A profile, its acceptance and a policy made concrete."""

import sys

from simulator import Callable

sys.modules[__name__].__class__ = Callable
