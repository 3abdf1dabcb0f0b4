"""Times and weighs our steps against plain ones, in one run."""
