"""Results of a sweep: their key, their files, and the metrics computed from them."""
