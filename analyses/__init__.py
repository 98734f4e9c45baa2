"""One file a scientific question. Analyses use ``interp``; ``interp`` never uses them."""
