"""The decode suite: a whole transformer, step by step, under each method; tokens per second and where the time goes."""
