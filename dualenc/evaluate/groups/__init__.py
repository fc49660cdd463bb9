"""Who it fails: metrics by group, the worst group, and the gap."""
