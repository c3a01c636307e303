"""Timing, statistics, ceilings, devices: how numbers come about."""
