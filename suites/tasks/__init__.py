"""The tasks suite: methods that decode freely, or look something up, beside dense decoding of the same prompts."""
