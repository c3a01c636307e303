"""The page `resa-bench report` writes: rows become one JSON payload, and assets/ holds what shows it.

Charts are SVG made by the page itself, not a library's canvas (uPlot, 53 kB, was the candidate). A chart here has tens
of points, so that speed decides nothing; and elements take colours from the theme, print sharp, carry the figures'
markers and hatches, and can be reached by keys. Nothing third-party is in the page.
"""
