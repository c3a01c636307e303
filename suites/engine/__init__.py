"""A model that decodes: state, steps, rectification, drafts and their checks; what suites of whole models share."""
