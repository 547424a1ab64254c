"""madakv inside other people's tools."""
