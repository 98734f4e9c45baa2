"""A folder a scientific question. Analyses use ``interp``; ``interp`` never uses them."""
