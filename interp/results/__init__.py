"""Results of a sweep: the key they are stored under, their files, and their metrics."""
