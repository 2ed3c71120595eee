"""How figures look: the colour of a policy, marks, axes and files."""
