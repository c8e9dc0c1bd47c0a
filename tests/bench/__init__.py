"""`make bench`: all contestants in one run. Ratios count; absolute figures vary with the machine."""
