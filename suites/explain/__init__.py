"""From the kernel's speed-up to the model's, stage by stage, for any decode case that has rows."""
