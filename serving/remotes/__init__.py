"""The places adapters are fetched from: the Hub, object stores, web servers."""
