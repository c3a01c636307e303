"""The reference run: every suite at one commit, in parts, published with a manifest."""
