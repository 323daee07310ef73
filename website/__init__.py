"""The documentation as a site: `./run docs` builds `site/` out of `docs/`, of pages from elsewhere, and of what the code says itself."""
