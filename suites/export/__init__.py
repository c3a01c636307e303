"""Rows in the formats of other tools."""
