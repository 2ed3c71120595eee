"""A profile, its acceptance and a policy made concrete."""
