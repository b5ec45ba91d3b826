"""The delivery engine: no HTML and no HTTP server."""
