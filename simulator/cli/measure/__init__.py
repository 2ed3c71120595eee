"""Commands that run on a device: profile, live, validate, train, trace."""
