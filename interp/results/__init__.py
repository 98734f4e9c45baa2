"""Results of a sweep: their key, their files, and what is read off them."""
