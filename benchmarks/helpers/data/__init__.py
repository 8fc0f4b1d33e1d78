"""A data set that is made (`made`), and what a driver does on a large one before its first step and in steps
(`large_start`)."""
