"""What speaks HTTP: the edge in front of Flask, the post routes, pages, charts and the API."""
