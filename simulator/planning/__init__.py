"""From an SLA and traffic to GPUs and cost."""
