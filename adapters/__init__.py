"""adapters: what an adapter is and where it comes from: ids, files, sources, registry."""
