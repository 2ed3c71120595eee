"""What drafts are worth: position-indexed traces, fitted models, plain rates, and how text names them."""
