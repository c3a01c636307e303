"""Rivals of ReSA behind the same interface, one file each."""
