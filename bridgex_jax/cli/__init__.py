"""`bridgex VERB`: reads the command line, calls one pipeline, prints its result.

Results go to standard output, everything else to standard error; bad input is one line,
`bridgex: error: …`, with exit status 2. No verb's libraries load before its arguments are right.
A module a verb (`add` declares its options, `run` calls its pipeline).
"""
