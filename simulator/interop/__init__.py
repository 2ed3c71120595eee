"""Files that serving engines read and write."""
