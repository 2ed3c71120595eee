"""Live against simulated: one scenario, run on the device and looked up in a profile."""
