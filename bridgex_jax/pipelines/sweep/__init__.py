"""`bridgex sweep`: models × pairs × settings, as units that nothing computes twice."""
