"""`make bench`: every contestant in turn, in one run; ratios count, absolute figures are noise."""
