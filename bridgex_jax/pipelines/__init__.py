"""One file a job, each reading from top to bottom: where files and pure code meet."""
