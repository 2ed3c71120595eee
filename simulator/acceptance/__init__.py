"""What drafts are worth: position-indexed traces, fitted models, plain rates, and how text names them."""

import sys

from simulator import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
