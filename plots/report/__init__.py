"""The page `resa-bench report` writes: rows become one JSON payload, and assets/ holds what shows it."""
