"""How fast the live path is, as ratios that a machine's drift cannot fake."""
