"""From a scan to masks and router maps: arrays in, arrays out."""
