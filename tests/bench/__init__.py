"""`make bench`: every contestant in turn on one machine, in one run; ratios count, absolute figures are noise."""
