"""A decoder for the Llama, Qwen2 and Qwen3 families, small enough to read, and where its weights come from."""
