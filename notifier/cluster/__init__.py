"""What a replica runs beside its work: supervised loops, the control connection, the failure detector."""
