"""One folder per scientific question. Analyses use ``interp``; ``interp`` never uses them."""
