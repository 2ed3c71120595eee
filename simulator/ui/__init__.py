"""The app that ``dspark-sim ui`` serves on this machine: explore, plan, check."""
