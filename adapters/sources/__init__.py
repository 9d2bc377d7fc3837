"""adapters.sources: where adapters come from: folders, the Hub, buckets, web servers; and the cache of downloads."""
