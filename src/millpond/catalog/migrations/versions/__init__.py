"""One file a revision. Their numbers are the versions of the catalog's format, without gaps: 0001, 0002, ..."""
