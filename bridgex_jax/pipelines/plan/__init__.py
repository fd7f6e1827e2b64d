"""Planning a pod that nobody holds: memory, collectives, time and cost from compiled programs."""
