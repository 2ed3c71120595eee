"""How long a step of a model takes on a GPU: composed of measured kernels, or by a formula."""
