"""What a run leaves on disk: the run directory with its manifest, result tables, activation counts.

Nothing here knows a model. A directory counts as a finished run only through `manifest.json`, which
is written last and lists the size and sha256 of every file. `runs` is the door; below it
`workplace` and `parts` hold what is not finished, `places` is where a run appears, `peers` lets
several processes make one run, and `paths` tells local from remote.
"""
