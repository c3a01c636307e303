"""The quality suite: what a faster step costs on a real model, measured against its own dense decoding."""
