"""The page that runs an edge bundle in a browser: what it is made of, and the server that shows it."""
