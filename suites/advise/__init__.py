"""Does it pay for my model? Dense decoding against ReSA, from floors and measured rows; no GPU is needed."""
