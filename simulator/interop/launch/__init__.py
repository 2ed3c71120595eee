"""How serving engines are started for a policy that was chosen: flags, files, and what they cannot say."""
