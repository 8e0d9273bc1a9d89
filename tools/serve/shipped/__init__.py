"""The HTTP server. It imports nothing of the project: `tools.serve --dockerfile` copies it beside an exported model."""
