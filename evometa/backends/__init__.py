"""Where the cells of plain-Python and command tasks are computed; each returns the same `Raw`."""
