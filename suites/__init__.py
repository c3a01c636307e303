"""What is measured and how it is run: cases, result rows, resume, comparison, the command line."""
