"""The highest rate that one replica serves within an SLA."""
