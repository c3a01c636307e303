"""The lossless suite: dense decoding's own tokens, drafted by sparse steps and verified by dense passes."""
