"""Pages made from rows: README and docs hold marked places, which these modules fill in and check."""
